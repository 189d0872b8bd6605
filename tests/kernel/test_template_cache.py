"""Building caches for real, with everything that can go wrong; the toy distribution is quick."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import umount
from pyvz.errors import CacheExists, Cancelled, NoSpace, TemplateError
from pyvz.model.task import NoProgress
from pyvz.store.paths import Paths
from pyvz.template import build, cache
from pyvz.template.metadata import OsTemplate, find_os
from toydistro import missing_programs, toy_node

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), missing_programs]

FILES = {"", ".sha256", ".verified"}
SOURCE = Path(build.__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from pyvz.model.task import NoProgress
from pyvz.store.paths import Paths
from pyvz.template import build, cache
from pyvz.template.metadata import find_os
paths = Paths(Path(sys.argv[1]))
build.build(paths, find_os(cache.area(paths), "toy-1"), NoProgress(), replace=True)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Paths]:
    with toy_node() as paths:
        yield paths


@pytest.fixture
def template(world: Paths) -> Iterator[OsTemplate]:
    """The toy template, without any cache before and after."""
    yield find_os(cache.area(world), "toy-1")
    shutil.rmtree(cache.directory(world), ignore_errors=True)


def names(world: Paths) -> set[str]:
    """What is in the folder of caches, without the cache's own name."""
    try:
        found = os.listdir(cache.directory(world))
    except FileNotFoundError:
        return set()
    return {name.removeprefix("toy-1-x86_64.plain.tar.zst") for name in found}


class Watch(NoProgress):
    """Remembers the stages; calls the task off in one of them."""

    def __init__(self, cancel_at: int = -1) -> None:
        self.stages: list[str] = []
        self.cancel_at = cancel_at

    def stage(self, text: str) -> None:
        self.stages.append(text)
        self.check()

    def check(self) -> None:
        if len(self.stages) - 1 == self.cancel_at:
            raise Cancelled("called off")


def test_a_cache_is_committed_with_its_checksum(world: Paths, template: OsTemplate) -> None:
    built = build.build(world, template, NoProgress(), replace=False)
    assert names(world) == FILES
    subprocess.run(
        ["sha256sum", "--check", "--quiet", f"{built.path.name}.sha256"],
        cwd=built.path.parent,
        check=True,
    )
    watch = Watch()
    cache.verify(built, watch)
    assert watch.stages == []  # not read again
    assert cache.find(world, ".toy-1") == built
    assert cache.caches(world) == [built]
    with pytest.raises(CacheExists, match="there already"):
        build.build(world, template, NoProgress(), replace=False)
    again = build.build(world, template, NoProgress(), replace=False, exist_ok=True)
    assert again == built
    cache.remove(world, "toy-1", NoProgress())
    assert names(world) == set()


def test_a_damaged_cache_is_noticed(world: Paths, template: OsTemplate) -> None:
    built = build.build(world, template, NoProgress(), replace=False)
    moment = built.path.stat()
    with built.path.open("r+b") as file:
        file.seek(1000)
        file.write(b"XXXX")
    os.utime(built.path, ns=(moment.st_atime_ns, moment.st_mtime_ns))
    with pytest.raises(TemplateError, match="damaged") as caught:
        cache.verify(built, NoProgress())
    assert "--force" in caught.value.hint
    build.build(world, template, NoProgress(), replace=True)
    cache.verify(built, NoProgress())
    assert names(world) == FILES


def test_a_cache_without_checksum_is_tested(world: Paths, template: OsTemplate) -> None:
    built = build.build(world, template, NoProgress(), replace=False)
    for suffix in (".sha256", ".verified"):
        built.path.with_name(built.path.name + suffix).unlink()
    watch = Watch()
    cache.verify(built, watch)
    assert watch.stages
    with built.path.open("r+b") as file:
        file.truncate(10000)
    with pytest.raises(TemplateError, match="damaged"):
        cache.verify(built, NoProgress())


def test_called_off_at_every_stage_nothing_is_left(world: Paths, template: OsTemplate) -> None:
    watch = Watch()
    build.build(world, template, watch, replace=False)
    cache.remove(world, "toy-1", NoProgress())
    assert len(watch.stages) >= 5
    for number in range(len(watch.stages)):
        with pytest.raises(Cancelled):
            build.build(world, template, Watch(number), replace=False)
        assert names(world) == set(), watch.stages[number]


def test_called_off_while_updating_the_old_one_stays(world: Paths, template: OsTemplate) -> None:
    built = build.build(world, template, NoProgress(), replace=False)
    inode = built.path.stat().st_ino
    with pytest.raises(Cancelled):
        build.build(world, template, Watch(2), replace=True)
    assert built.path.stat().st_ino == inode
    assert names(world) == FILES


def test_a_full_disk_is_told_and_nothing_is_left(world: Paths, template: OsTemplate) -> None:
    place = cache.directory(world)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], check=True)
    try:
        with pytest.raises(NoSpace, match="is full"):
            build.build(world, template, NoProgress(), replace=False)
        assert names(world) == set()
    finally:
        umount(place)


def test_two_builds_at_once_make_one_cache(world: Paths, template: OsTemplate) -> None:
    watches = [Watch(), Watch()]
    found = []

    def work(watch: Watch) -> None:
        found.append(build.build(world, template, watch, replace=False, exist_ok=True))

    threads = [threading.Thread(target=work, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    assert found[0] == found[1]
    lengths = sorted(len(watch.stages) for watch in watches)
    assert lengths[0] <= 1  # waited, perhaps said so, and built nothing
    assert names(world) == FILES


@pytest.mark.parametrize("delay", [0.7, 1.5, 2.5, 3.5])
def test_a_killed_build_is_swept_by_the_next(
    world: Paths, template: OsTemplate, delay: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, world.root],
        env={**os.environ, "PYTHONPATH": os.fspath(SOURCE)},
    )
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 60
    while _working_in(world.root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _working_in(world.root) == []
    time.sleep(1.1)
    built = build.build(world, template, NoProgress(), replace=True)
    assert names(world) == FILES
    cache.verify(built, NoProgress())


def _working_in(root: Path) -> list[str]:
    """Command lines that name ROOT, of others than this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if os.fspath(root) in text and folder.name != str(os.getpid()):
            found.append(text.replace("\0", " "))
    return found
