"""The interface io.pyvz.Migration: environments that go to another node, and those that come.

No `from __future__ import annotations` here: see replies.py.
"""

import functools
import logging
import os
from typing import TypedDict

from asyncvarlink import FileDescriptor, VarlinkInterface, varlinkmethod

from pyvz.daemon import farend
from pyvz.daemon.calls import Api, acting, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.errors import VZError
from pyvz.migration import dial
from pyvz.migration.address import parse, ssh_options
from pyvz.migration.request import Report, Request
from pyvz.migration.wire import SILENCE, Wire
from pyvz.model.task import Progress
from pyvz.operations import fetch, home, immigrate, migrate
from pyvz.operations.node import Node

logger = logging.getLogger(__name__)


class Phase(TypedDict):
    """One stage of a migration, and its seconds."""

    stage: str
    seconds: float


class Migrated(TypedDict):
    """What happened.  uuid, name, host: over there.  seconds: in all; still: it stood so long.

    rounds: bytes of the rounds of its disks; memory: of its memory; sent: on the wire.
    started: it runs there; problem: why not, though it should.  phases: in their order.
    memory_rounds: pages of the rounds of its memory while it ran; precopy: why there were none.
    """

    uuid: str
    name: str
    host: str
    seconds: float
    still: float
    rounds: list[int]
    sent: int
    memory: int
    started: bool
    problem: str
    phases: list[Phase]
    memory_rounds: list[int]
    precopy: str


def _work(node: Node, ref: str, source: str | None, request: Request) -> Work:
    if source is not None:
        parse(source)

        def run(task: Progress) -> Report:
            return fetch.fetch(node, source, ref, request, task)
    else:

        def run(task: Progress) -> Report:
            return migrate.migrate(node, ref, request, task)

    return Work("migrate", ref, run, _migrated, cancellable=True)


def _migrated(report: Report) -> Migrated:
    phases = [{"stage": stage, "seconds": seconds} for stage, seconds in report.phases]
    lists = {
        "rounds": list(report.rounds),
        "phases": phases,
        "memory_rounds": list(report.memory_rounds),
    }
    return {**report._asdict(), **lists}  # type: ignore[typeddict-item]


class Migration(Api, VarlinkInterface, name="io.pyvz.Migration"):
    """Moving environments between nodes.  See docs/design/migration.md for what is on the wire."""

    @streaming(Migrated)
    def Migrate(  # noqa: PLR0913  the fields of the call
        self,
        node: Node,
        *,
        ref: str,
        target: str,
        source: str | None = None,
        online: bool = False,
        post_copy: bool = False,
        memory_rounds: bool = True,
        clone: bool = False,
        name: str | None = None,
        uuid: str | None = None,
        private: str | None = None,
        remove: bool = False,
        start: bool = True,
        nonshared: bool = False,
        ignore: list[str] = [],  # noqa: B006  never changed; the published default
        ssh: str | None = None,
        silence: float = SILENCE,
        compress: bool = True,
        dry_run: bool = False,
    ) -> Work:
        """Move an environment to the node `target`, [user@]host[:port], which ssh reaches without
        a question; with `source`, from that node to this one.  Can be called off.

        memory_rounds: False: no memory goes while it runs (pre-copy).
        online: do not stop a running one.  post_copy: a running one is let go over there before its
        memory is there, which follows (post-copy); if that cannot come to an end, it is started
        anew from its disks.  clone: a copy goes, it stays.  name, uuid, private: what
        it is to be there.  remove: its files here go; else they stay as *.migrated.  start: whether
        it runs there as it did here.  nonshared: copy, also where both nodes see the same files.
        ignore: checks to leave out (cpu_check, disk_space, technologies, memory, bindmount, all).
        silence: seconds without a sign of life after which the connection counts as broken.
        """
        request = Request(
            target=target,
            online=online,
            post_copy=post_copy,
            memory_rounds=memory_rounds,
            clone=clone,
            name=name,
            uuid=uuid,
            private=private,
            remove=remove,
            start=start,
            shared=False if nonshared else None,
            ignore=tuple(ignore),
            ssh=tuple(ssh_options(ssh)),
            silence=max(2.0, silence),
            compress=compress,
            dry_run=dry_run,
        )
        return _work(node, ref, source, request)

    @acting(Empty)
    def Settle(self, node: Node, *, ref: str, here: bool) -> Work:
        """Decide about an environment whose migration broke off in the moment of the decision, for
        a node that is gone for ever: it is here, or it is there.
        """
        return Work("settle", ref, lambda _: migrate.force(node, ref, here=here), lambda _: {})

    @varlinkmethod(return_parameter="stream", allow_foreign=True)
    async def Receive(self, *, reading: FileDescriptor, writing: FileDescriptor) -> FileDescriptor:
        """Answer another node's questions, which come on `reading`, on `writing`.

        Returns a socket that ends when that has ended.
        """
        return farend.answer("migration", functools.partial(_serve, self.node), reading, writing)


def _serve(node: Node, reading: int, writing: int) -> None:
    """Answer the other node's questions until it goes (in a thread of its own)."""
    try:
        with Wire(reading, writing) as link:
            link.send(dial.hello(home.owner_id(node)))
            dial.expect_hello(link.receive(dial.HELLO_TIMEOUT))
            immigrate.serve(node, link)
    except (VZError, OSError) as error:
        logger.warning("a migration's connection: %s", error)
    except Exception:
        logger.exception("a migration's connection, pid %d", os.getpid())
