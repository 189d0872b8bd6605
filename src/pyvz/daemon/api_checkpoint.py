"""The interface io.pyvz.Checkpoint: the memory of environments, to disk and back.

No `from __future__ import annotations` here: see replies.py.
"""

from pathlib import Path

from asyncvarlink import VarlinkInterface

from pyvz.daemon.calls import Api, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import suspend
from pyvz.operations.dump import ResumeOptions
from pyvz.operations.node import Node
from pyvz.operations.suspend import SuspendOptions


class Checkpoint(Api, VarlinkInterface, name="io.pyvz.Checkpoint"):
    """`ref` is a UUID, a legacy numeric CTID, or a name.  What is suspended goes on by
    Environment.Start or Environment.Resume; Environment.Stop forgets its memory.
    """

    @streaming(Empty)
    def Suspend(self, node: Node, *, ref: str, file: str | None = None, stay: bool = False) -> Work:
        """Write its memory to disk and end it.  file: there, and Restore brings it back;
        stay: it is not ended but paused.
        """
        options = SuspendOptions(None if file is None else Path(file), stay)
        return Work(
            "suspend",
            ref,
            lambda task: suspend.suspend(node, ref, options=options, progress=task),
        )

    @streaming(Empty)
    def Restore(self, node: Node, *, ref: str, file: str, frozen: bool = False) -> Work:
        """Bring it back from a file, which stays.  frozen: it is paused afterwards."""
        options = ResumeOptions(Path(file), keep=True, frozen=frozen)
        return Work("resume", ref, lambda task: suspend.restore(node, ref, options, progress=task))
