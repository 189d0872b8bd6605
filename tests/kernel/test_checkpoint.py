"""Dump and restore of a container by the engine: what comes back, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import Engine, wait_for
from pyvz.container import criuimages, dumpfile, dumpwriter
from pyvz.container.checkpoint import Checkpoint, DumpHooks, RestoreHooks
from pyvz.container.client import KeeperClient
from pyvz.container.criurequest import DumpRequest
from pyvz.container.criurpc import CriuDied
from pyvz.container.frame import Frame
from pyvz.container.spec import Bind, ContainerSpec
from pyvz.errors import CheckpointError, RestoreError
from pyvz.linux import mount
from pyvz.model.limits import IdRange
from pyvz.model.task import NoProgress

pytestmark = pytest.mark.requires("criu", "userns")

COUNT = "n=0; while :; do n=$((n+1)); echo $n > /root/n; sleep 0.05; done"


class Bench:
    """An engine, a container that counts, and a directory for its images."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.made = Checkpoint(engine.runtime, engine.keeper, engine.paths)
        self.spec = engine.spec()._replace(argv=("/bin/sh", "-c", COUNT))
        self.images = engine.paths.root / "images"
        self.images.mkdir()
        self.images.chmod(0o755)

    def start(self, spec: ContainerSpec | None = None) -> None:
        self.spec = spec or self.spec
        self.engine.start(self.spec)
        self.counts()

    def count(self) -> int:
        path = self.spec.root / "root/n"
        return int(path.read_text() or 0) if path.exists() else 0

    def counts(self) -> None:
        before = self.count()
        wait_for(lambda: self.count() > before + 1)

    def dump(self, hooks: DumpHooks | None = None, *, leave_running: bool = False) -> bool:
        with self.made.worker(self.spec.uuid, self.images) as worker:
            request = DumpRequest(self.made.frame(self.spec), leave_running=leave_running)
            return self.made.dump(worker, request, hooks or DumpHooks())

    def forget(self) -> None:
        self.engine.runtime.kill(self.spec.uuid)
        self.engine.runtime.clean(self.spec.uuid)

    def restore(self, spec: ContainerSpec | None = None, hooks: RestoreHooks | None = None) -> None:
        spec = spec or self.spec
        frame = Frame.load(self.images)
        root = self.made.root(spec, frame)
        with self.made.worker(spec.uuid, self.images, root=root) as worker:
            self.made.restore(worker, spec, frame, hooks or RestoreHooks())

    def runs(self) -> bool:
        return self.spec.uuid in self.engine.runtime.running()


@pytest.fixture
def bench(short_root: Path) -> Iterator[Bench]:
    engine = Engine(short_root)
    try:
        yield Bench(engine)
    finally:
        engine.close()


def test_it_goes_on_as_a_child_of_the_keeper_with_console_and_reboot(bench: Bench) -> None:
    bench.engine.watch()
    bench.start()
    assert bench.dump()
    bench.forget()
    before = bench.count()
    bench.restore()
    bench.counts()
    wait_for(lambda: bench.count() > before)
    name = bench.spec.uuid
    assert bench.engine.shell(name, "cat /proc/1/comm; tty").out.startswith("sh")
    os.close(bench.engine.runtime.console(name))
    bench.engine.exits.clear()
    bench.engine.shell(name, "kill -9 1; reboot -f")
    wait_for(lambda: bool(bench.engine.exits))
    assert [end.reason for end in bench.engine.exits] == ["reboot"]


def test_the_frozen_source_goes_on_when_told_to(bench: Bench) -> None:
    bench.start()
    unlocked: list[bool] = []
    hooks = DumpHooks(frozen=lambda: False, network_unlock=lambda: unlocked.append(True))
    assert not bench.dump(hooks)
    assert unlocked
    bench.counts()

    def refuse() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.dump(DumpHooks(frozen=refuse))
    bench.counts()
    assert bench.dump(leave_running=True)
    bench.counts()


def test_another_id_range_and_a_bind_of_the_node(bench: Bench) -> None:
    place = bench.engine.paths.root / "shared"
    place.mkdir()
    bind = Bind(place, "/mnt/shared")
    text = "echo $$ >/mnt/shared/pid; " + COUNT
    bench.start(bench.spec._replace(binds=(bind,), argv=("/bin/sh", "-c", text)))
    assert bench.dump()
    bench.forget()
    with pytest.raises(RestoreError, match="/mnt/shared"):
        bench.restore(bench.spec._replace(binds=()))
    other = IdRange(bench.spec.ids.first + 65536) if bench.spec.ids else None
    bench.restore(bench.spec._replace(ids=other))
    bench.counts()
    done = bench.engine.shell(
        bench.spec.uuid, "echo hello >/mnt/shared/new; id -u; stat -c %u /root"
    )
    assert done.out.split() == ["0", "0"]
    assert (place / "new").stat().st_uid == 0


def test_a_failed_restore_leaves_nothing_and_the_images_serve_again(bench: Bench) -> None:
    bench.start()
    assert bench.dump()
    bench.forget()

    def refuse(_init: object) -> None:
        raise ZeroDivisionError

    for hooks in (RestoreHooks(namespaces=refuse), RestoreHooks(adopted=refuse)):
        with pytest.raises(ZeroDivisionError):
            bench.restore(hooks=hooks)
        assert not bench.runs()
        assert bench.spec.uuid not in bench.engine.cgroups.names()
    (bench.images / "core-1.img").rename(bench.images / "away")
    with pytest.raises(RestoreError):
        bench.restore()
    (bench.images / "away").rename(bench.images / "core-1.img")
    bench.restore()
    bench.counts()


def test_a_dump_that_is_killed_lets_it_go_on(bench: Bench) -> None:
    bench.start()

    def shoot() -> bool:
        [worker] = bench.made.workers(bench.spec.uuid)
        os.kill(worker.pid, signal.SIGKILL)
        return True

    with pytest.raises(CriuDied):
        bench.dump(DumpHooks(frozen=shoot))
    bench.counts()


def test_a_dump_whose_reader_has_died_ends_and_lets_it_go_on(bench: Bench) -> None:
    bench.start()
    os.mkfifo(bench.images / "pages-1.img")
    with ThreadPoolExecutor(1) as pool:
        dumping = pool.submit(bench.dump)
        while not bench.made.workers(bench.spec.uuid):
            time.sleep(0.01)
        bench.made.settle(bench.spec.uuid, 60.0)
        with pytest.raises(CheckpointError) as caught:
            dumping.result(120)
    assert not isinstance(caught.value, CriuDied)  # it has mended what it had begun
    bench.counts()


def test_a_waiting_criu_holds_no_mount_of_the_node(bench: Bench) -> None:
    """Else the disk of a container that stops would be busy while another one is dumped."""
    bench.start()
    place = bench.engine.paths.root / "places"
    disk = place / "disk"
    disk.mkdir(parents=True)
    mount.make_shared(place)  # as the directory of containers' roots is
    try:
        mount.mount("tmpfs", disk, "tmpfs")
        with bench.made.worker(bench.spec.uuid, bench.images) as worker:
            told = Path(f"/proc/{worker.connection.pid}/mountinfo")
            assert str(disk) in told.read_text()
            mount.umount(disk)
            assert str(disk) not in told.read_text()
    finally:
        mount.umount(place, recursive=True)


def test_a_console_that_was_lost(bench: Bench) -> None:
    bench.start()
    pid = int(bench.engine.keeper.call("ping").data["pid"])
    bench.engine.keeper.close()  # and with it our copy of the console
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    bench.engine.keeper = KeeperClient.start_if_absent(bench.engine.paths)
    bench.engine.runtime = bench.engine.new_runtime(bench.engine.keeper)
    bench.made = Checkpoint(bench.engine.runtime, bench.engine.keeper, bench.engine.paths)
    bench.counts()
    assert bench.dump()
    bench.forget()
    bench.restore()
    bench.counts()


def test_what_cannot_be_dumped_is_told_in_words(bench: Bench) -> None:
    bench.start(bench.spec._replace(nesting=True))
    bench.engine.shell(bench.spec.uuid, "unshare -u sleep 1000 </dev/null >/dev/null 2>&1 &")
    with pytest.raises(CheckpointError, match="namespace of its own") as caught:
        bench.dump()
    assert "Error (criu/" in caught.value.details
    bench.counts()


def test_images_packed_and_unpacked_are_the_same(bench: Bench) -> None:
    bench.start()
    assert bench.dump()
    target = bench.engine.paths.root / "packed"
    index = dumpwriter.pack(bench.images, target, NoProgress())
    assert 0 < index.stored < index.size
    again = bench.engine.paths.root / "again"
    again.mkdir()
    dumpfile.unpack(target, again, NoProgress())
    for name, _ in index.files:
        assert (again / name).read_bytes() == (bench.images / name).read_bytes()
    assert dumpfile.verify(target, NoProgress()) == index
    stats = criuimages.dump_stats(again)
    assert stats is not None
    assert stats.written > 0
