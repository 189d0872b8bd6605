"""Backups under faults: death and errors at every step, damage, a full disk, two at once."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from test_backup import DRIVERS, MIB, make, mounted, node, spread, tree_of

import faults
from homes import Called
from places import umount
from pyvz.backup.repository import Repository
from pyvz.errors import (
    AlreadyMounted,
    BackupDamaged,
    BackupNotFound,
    BadValue,
    Cancelled,
    Locked,
    NoSpace,
    StorageError,
    VZError,
)
from pyvz.model.environment import Environment
from pyvz.operations import backup, leftovers, lifecycle, provision, restore
from pyvz.operations.backup import Request
from pyvz.operations.backupstorage import Where
from pyvz.operations.node import Node
from pyvz.operations.restore import Wanted

pytestmark = pytest.mark.requires("root")
__all__ = ["node"]  # the fixture


def chunks_of(node: Node) -> list[Path]:
    return [p for p in (node.paths.vz / "backups/chunks").rglob("*") if p.is_file()]


def change(node: Node, env: Environment, text: str) -> None:
    with mounted(node, env) as root:
        (root / "data/changed").write_text(text * 1000)


@pytest.mark.parametrize("driver", DRIVERS)
def test_death_in_a_backup(node: Node, driver: str) -> None:
    """Whatever the step: earlier backups are whole, and the next backup is made and right."""
    env = make(node, driver)
    first = backup.create(node, "ct1", Request())
    step, died = 1, True
    while died:
        change(node, env, f"{step} ")
        died = faults.killed_at(
            step, lambda: backup.create(node, "ct1", Request()), node.paths.root
        )
        leftovers.repair_all(node)
        assert not (node.paths.aside / f"{env.uuid}.backup").exists()
        step += 9
    assert step > 20
    backup.create(node, "ct1", Request())
    now = tree_of(node, env)
    assert tree_of(node, restore.restore(node, Wanted(ref="ct1", name="copy"))) == now
    assert backup.verify(node) == []
    backup.delete(node, tag=first.tag)
    assert backup.rows(node) == []
    assert chunks_of(node) == []
    assert not list((node.paths.vz / "backups/temporary").iterdir())


@pytest.mark.parametrize("driver", DRIVERS)
def test_death_in_a_restore_in_place(node: Node, driver: str) -> None:
    """The container is the present one or the restored one, never anything else."""
    env = make(node, driver)
    old = tree_of(node, env)
    backup.create(node, "ct1", Request())
    change(node, env, "new")
    new = tree_of(node, env)
    step, died = 1, True
    while died:
        died = faults.killed_at(
            step, lambda: restore.restore(node, Wanted(ref="ct1")), node.paths.root
        )
        leftovers.repair_all(node)
        assert tree_of(node, env) in (old, new)
        assert [p.name for p in env.home.parent.iterdir()] == [env.uuid]
        step += 17
    assert tree_of(node, env) == old


def test_cancelled_and_failed_leave_nothing(node: Node) -> None:
    env = make(node, "ploop")
    backup.create(node, "ct1", Request())
    change(node, env, "x")
    homes = sorted(p.name for p in env.home.iterdir())
    kept = list((env.home / ".backup").iterdir())
    for number in (1, 2, 4):
        with pytest.raises(Cancelled):
            backup.create(node, "ct1", Request(full=True), Called(number))
        with pytest.raises(Cancelled):
            restore.restore(node, Wanted(ref="ct1", name="copy"), Called(number))
        with pytest.raises(Cancelled):
            restore.restore(node, Wanted(ref="ct1"), Called(number))
    assert len(backup.rows(node)) == 1
    assert sorted(p.name for p in env.home.iterdir()) == homes
    assert list((env.home / ".backup").iterdir()) == kept
    assert [p.name for p in env.home.parent.iterdir()] == [env.uuid]


@pytest.mark.parametrize("driver", DRIVERS)
def test_damage_is_named_and_stays_where_it_is(node: Node, driver: str) -> None:
    env = make(node, driver)
    good = tree_of(node, env)
    first = backup.create(node, "ct1", Request())
    before = set(chunks_of(node))
    with mounted(node, env) as root:
        spread(root / "data/more", size=MIB, seed=9)
    second = backup.create(node, "ct1", Request())
    fresh = sorted(set(chunks_of(node)) - before, key=lambda path: path.stat().st_size)
    fresh[-1].write_bytes(b"rubbish")
    fresh[-2].unlink()
    where = "data/more" if driver == "simfs" else "bytes "
    with pytest.raises(BackupDamaged, match=f"{second.chain}.*root.hdd.*{where}"):
        restore.restore(node, Wanted(tag=second.tag, name="copy"))
    assert tree_of(node, restore.restore(node, Wanted(tag=first.tag, name="old"))) == good
    problems = backup.verify(node)
    assert problems
    assert all(second.tag in problem and where in problem for problem in problems)
    # What is damaged is no base for an incremental: the next one reads all and is whole.
    third = backup.create(node, "ct1", Request())
    assert third.number == 1
    assert backup.verify(node, tag=third.tag) == []
    assert backup.verify(node) == []  # the data was stored anew, under the same names


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_damaged_chunk_is_stored_anew(node: Node, driver: str) -> None:
    """Also a second one of the same file, and the index or catalog."""
    env = make(node, driver)
    with mounted(node, env) as root:
        spread(root / "data/more", size=MIB, seed=9)
    first = backup.create(node, "ct1", Request())
    for path in chunks_of(node):
        path.write_bytes(b"rubbish")
    while backup.verify(node, tag=first.tag):  # pages first: they tell where the rest is
        again = backup.create(node, "ct1", Request(full=True))
    assert backup.verify(node) == []
    want = tree_of(node, env)
    for tag in (first.tag, again.tag):
        assert (
            tree_of(node, restore.restore(node, Wanted(tag=tag, name=f"from-{tag[1:9]}"))) == want
        )


def test_full_storage(node: Node, short_root: Path) -> None:
    env = make(node, "ploop")
    before = tree_of(node, env)
    with mounted(node, env) as root:
        spread(root / "bulk", size=8 * MIB, seed=4)
    small = short_root / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        with pytest.raises(NoSpace, match="ct1"):
            backup.create(node, "ct1", Request(where=Where(str(small))))
        assert backup.rows(node, where=Where(str(small))) == []
        assert not list((small / "temporary").iterdir())
        (env.home / ".backup").exists()
        with mounted(node, env) as root:
            (root / "bulk").unlink()
        assert tree_of(node, env) == before
    finally:
        umount(small)


def test_two_at_once(node: Node) -> None:
    make(node, "ploop", "ct1")
    make(node, "ploop", "ct2")
    failures: list[BaseException] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except VZError as error:
            failures.append(error)

    def threads(*works: Callable[[], object]) -> None:
        started = [threading.Thread(target=attempt, args=(work,)) for work in works]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    threads(
        lambda: backup.create(node, "ct1", Request()),
        lambda: backup.create(node, "ct2", Request()),
    )
    assert failures == []
    assert len(backup.rows(node)) == 2
    threads(*[lambda: backup.create(node, "ct1", Request(full=True))] * 2)
    assert all(isinstance(error, Locked) for error in failures)
    assert len(backup.rows(node)) + len(failures) == 4
    assert backup.verify(node) == []


def test_deletion(node: Node) -> None:
    env = make(node, "simfs")
    tags = []
    for number in range(5):
        change(node, env, f"{number}")
        tags.append(backup.create(node, "ct1", Request(full=number == 3)).tag)
    assert backup.delete(node, tag=tags[1], keep_chain=True) == [tags[1]]
    assert [row.manifest.tag for row in backup.rows(node)] == [tags[0], *tags[2:]]
    assert backup.verify(node) == []
    assert backup.delete(node, tag=tags[0]) == [tags[0], tags[2]]
    assert [row.manifest.tag for row in backup.rows(node)] == tags[3:]
    assert backup.verify(node) == []
    backup.create(node, "ct1", Request())
    backup.delete(node, "ct1")
    assert backup.rows(node) == []
    assert chunks_of(node) == []
    with pytest.raises(BackupNotFound):
        backup.delete(node, tag=tags[0])


def test_refusals(node: Node, short_root: Path) -> None:
    env = make(node, "ploop")
    with pytest.raises(BackupNotFound):
        restore.restore(node, Wanted(ref="ct1"))
    made = backup.create(node, "ct1", Request())
    lifecycle.mount(node, "ct1")
    try:
        with pytest.raises(AlreadyMounted):
            restore.restore(node, Wanted(ref="ct1"))
        assert backup.create(node, "ct1", Request()).number == 2  # mounted: frozen for a moment
    finally:
        lifecycle.umount(node, "ct1")
    with pytest.raises(VZError, match="already"):
        restore.restore(node, Wanted(tag=made.tag, name="ct1"))
    with pytest.raises(BadValue, match="not the id of a backup"):
        restore.restore(node, Wanted(tag="../../x"))
    with pytest.raises(BadValue, match="files of a container"):
        backup.create(node, "ct1", Request(where=Where(os.fspath(env.home / "x"))))
    foreign = short_root / "foreign"
    foreign.mkdir()
    (foreign / "precious").touch()
    with pytest.raises(StorageError, match="left alone"):
        backup.create(node, "ct1", Request(where=Where(os.fspath(foreign))))
    assert [p.name for p in foreign.iterdir()] == ["precious"]
    # A manifest that cannot be read stops no other backup, and no data is removed then.
    broken = node.paths.vz / f"backups/backups/{env.uuid}/{env.uuid}.json"
    broken.write_text("{}")
    assert len(backup.rows(node)) == 2
    before = len(chunks_of(node))
    backup.delete(node, tag=made.tag)
    assert len(chunks_of(node)) == before
    assert Repository.open(node.paths.vz / "backups").readable()[0] == []
    provision.delete(node, "ct1")
