"""Post-copy without a second node: what was dumped stays and is fetched by what runs already."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine import Engine, hold, wait_for
from pyvz.container.checkpoint import Checkpoint, DumpHooks, RestoreHooks
from pyvz.container.criurequest import DumpRequest
from pyvz.container.frame import Frame
from pyvz.errors import CheckpointError, MigrationError
from pyvz.linux import pipes, userfault
from pyvz.migration import wire
from pyvz.migration.pageline import PageLine
from pyvz.operations.fetching import Fetching

pytestmark = [
    pytest.mark.requires("criu", "userns"),
    pytest.mark.usefixtures("userfaultfd_switch"),
]

SIZE = 8 << 20
HOLD = hold(SIZE)


class Move:
    """A container that is dumped, and restored as another one, with its pages left behind."""

    def __init__(self, engine: Engine, wires: tuple[wire.Wire, wire.Wire]) -> None:
        self.engine = engine
        self.made = Checkpoint(engine.runtime, engine.keeper, engine.paths)
        self.spec = engine.spec()._replace(argv=("/bin/sh", "-c", HOLD))
        self.other = self.spec._replace(uuid=str(uuid.uuid4()))
        self.images, self.there = (engine.paths.root / name for name in ("images", "there"))
        self.images.mkdir()
        self.images.chmod(0o755)
        self.line = PageLine(wires[0].channel(1), serving=True, moved=self.moved)
        self.stops_at: float = math.inf  # bytes
        self.stopped = threading.Event()
        self.fetching = Fetching(self.made, self.there, wires[1].channel(1))
        self.sent, self.go = threading.Event(), threading.Event()
        self.result: BaseException | bool = False
        self.dumping = threading.Thread(target=self.dump, daemon=True)

    def dump(self) -> None:
        """As livedump.py does it."""

        def frozen() -> bool:
            self.engine.cgroups.freeze(self.spec.uuid)
            shutil.copytree(self.images, self.there)
            self.there.chmod(0o755)
            self.sent.set()
            return True

        fds = (self.line.theirs.fileno(),)
        with self.made.worker(self.spec.uuid, self.images, fds=fds) as worker:
            self.line.given()
            frame = self.made.frame(self.spec)
            request = DumpRequest(frame, lazy_pages=True, page_fd=worker.number(0))
            try:
                self.result = self.made.dump(worker, request, DumpHooks(frozen=frozen))
            except CheckpointError as error:
                self.result = error

    def moved(self, total: int) -> None:
        """Let no more pages pass when so many have; until the line is closed."""
        if total >= self.stops_at:
            self.stopped.set()
            self.line.broken.wait(200)

    def fetcher_lives(self) -> bool:
        note = json.loads((self.there / "fetcher.json").read_text())
        return Path(f"/proc/{note['pid']}/exe").exists()

    def start(self) -> None:
        root = self.spec.root / "root"
        self.engine.start(self.spec)
        wait_for((root / "ready").exists)
        (root / "want").write_bytes((root / "data").read_bytes())
        pipes.allow(4 << 20)
        self.dumping.start()
        assert self.sent.wait(120)

    def restore(self) -> None:
        self.line.start()
        self.fetching.start()
        frame = Frame.load(self.there)
        root = self.made.root(self.other, frame)
        worker = self.made.worker(self.other.uuid, self.there, root=root)
        with worker as ready, userfault.allowed(self.engine.paths.run / "userfaultfd"):
            self.made.restore(ready, self.other, frame, RestoreHooks(), lazy_pages=True)

    def end(self) -> None:
        for each in (self.other.uuid, self.spec.uuid):
            if each in self.engine.runtime.running():
                self.engine.runtime.kill(each)
            self.engine.runtime.clean(each)
        self.fetching.close()
        self.line.close()
        self.dumping.join(120)


@pytest.fixture
def move(short_root: Path) -> Iterator[Move]:
    engine = Engine(short_root)
    with ExitStack() as stack:
        stack.callback(engine.close)
        one, other = (stack.enter_context(_wire(each.detach())) for each in wire.pair())
        made = Move(engine, (one, other))
        stack.callback(made.end)
        yield made


def _wire(fd: int) -> wire.Wire:
    return wire.Wire(fd, fd, silence=120.0)


def test_memory_follows_and_the_rest_stays_ours(move: Move) -> None:
    move.start()
    move.restore()
    move.fetching.wait(lambda: None)
    # The source is told nothing of the end: it is still there, frozen, until we end it.
    assert move.spec.uuid in move.engine.runtime.running()
    move.line.close()
    move.dumping.join(120)
    assert isinstance(move.result, CheckpointError)
    assert move.spec.uuid in move.engine.runtime.running()
    move.engine.runtime.kill(move.spec.uuid)
    root = move.spec.root / "root"
    session = move.engine.run(move.other.uuid, "/bin/sh", "-c", "echo > /root/go")
    assert session.code == 0
    wait_for(lambda: (root / "sum").exists() and (root / "sum").read_text() != "")
    wanted = hashlib.md5((root / "want").read_bytes(), usedforsecurity=False).hexdigest()
    assert (root / "sum").read_text().split()[0] == wanted


def test_what_breaks_before_the_end_leaves_the_source_whole(move: Move) -> None:
    """The line ends when nothing was decided: the processes go on where they were."""
    move.start()
    move.line.start()
    move.line.close()
    move.dumping.join(120)
    assert isinstance(move.result, CheckpointError)
    move.engine.cgroups.thaw(move.spec.uuid)
    root = move.spec.root / "root"
    move.engine.run(move.spec.uuid, "/bin/sh", "-c", "echo > /root/go")
    wait_for(lambda: (root / "sum").exists() and (root / "sum").read_text() != "")


def test_what_breaks_afterwards_ends_the_copy_first(move: Move) -> None:
    """It is ended while its fetcher lives, so that it never sees zeros where a page is missing."""
    move.stops_at = SIZE // 2
    move.start()
    move.restore()
    assert move.stopped.wait(120)
    assert move.other.uuid in move.engine.runtime.running()
    ended: list[bool] = []

    def end() -> None:
        ended.append((move.there / "lazy-pages.socket").exists() and move.fetcher_lives())
        move.engine.runtime.kill(move.other.uuid)

    move.line.close()
    with pytest.raises(MigrationError, match="connection broke"):
        move.fetching.wait(end)
    assert ended == [True]
    assert move.other.uuid not in move.engine.runtime.running()
