"""Id ranges: never shared, stable, out of everybody else's way."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from pyvz.errors import NotEnoughResources
from pyvz.store import idrange
from pyvz.store.idrange import COUNT, FIRST, RANGES, IdRanges
from pyvz.store.paths import Paths


def node(tmp_path: Path, name: str = "a") -> IdRanges:
    root = tmp_path / name
    root.mkdir(exist_ok=True)
    etc = tmp_path / "etc"
    etc.mkdir(exist_ok=True)
    return IdRanges(Paths(root), claims=tmp_path / "claims", etc=etc)


def test_the_span_is_the_unused_one_of_systemd() -> None:
    assert FIRST == 1879048192
    assert FIRST + RANGES * COUNT == 0x7FFE0000 < 2**31
    assert FIRST % COUNT == 0
    assert RANGES > 4000


def test_stable_and_released(tmp_path: Path) -> None:
    ranges, uuid = node(tmp_path), str(uuid4())
    assert ranges.get(uuid) is None
    first = ranges.allocate(uuid)
    assert first.count == 65536
    assert ranges.allocate(uuid) == ranges.get(uuid) == node(tmp_path).get(uuid) == first
    assert ranges.all() == {uuid: first}
    ranges.release(uuid)
    ranges.release(uuid)
    assert ranges.get(uuid) is None
    assert not list((tmp_path / "claims").iterdir())


def test_two_nodes_never_share(tmp_path: Path) -> None:
    nodes = [node(tmp_path, name) for name in "ab"]
    uuids = [str(uuid4()) for _ in range(60)]
    found = [ranges.allocate(uuid) for ranges in nodes for uuid in uuids]
    assert len({x.first for x in found}) == 120
    nodes[0].release(uuids[0])
    assert nodes[1].get(uuids[0]) is not None


def test_threads_never_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idrange, "RANGES", 40)  # makes them meet
    found = []

    def work() -> None:
        found.extend(node(tmp_path).allocate(str(uuid4())) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    node(tmp_path)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len({x.first for x in found}) == len(found) == 40


def test_a_crash_between_claim_and_note_is_healed(tmp_path: Path) -> None:
    ranges, uuid = node(tmp_path), str(uuid4())
    first = ranges.allocate(uuid)
    (tmp_path / "a/var/lib/pyvz/idrange" / uuid).unlink()
    assert ranges.get(uuid) is None
    assert ranges.allocate(uuid) == first
    assert len(list((tmp_path / "claims").iterdir())) == 1


def test_a_note_without_its_claim_is_not_believed(tmp_path: Path) -> None:
    ranges, uuid = node(tmp_path), str(uuid4())
    first = ranges.allocate(uuid)
    (tmp_path / "claims" / str(first.first)).write_text("/elsewhere\nx\n")
    assert ranges.get(uuid) is None
    assert ranges.allocate(uuid) != first


def test_other_users_of_the_span_are_stepped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idrange, "RANGES", 4)
    ranges = node(tmp_path)
    etc = tmp_path / "etc"
    (etc / "subuid").write_text(f"root:100000:65536\nincus:{FIRST + 5}:10\nbroken\n")
    (etc / "subgid").write_text(f"x:{FIRST + COUNT + 9}:{COUNT}\n")
    (etc / "passwd").write_text(f"late:x:{FIRST + 3 * COUNT - 1}:0::/:/bin/sh\nroot:x:0:0:::\n")
    assert ranges.allocate(str(uuid4())).first == FIRST + 3 * COUNT
    with pytest.raises(NotEnoughResources):
        ranges.allocate(str(uuid4()))


def test_nodes_that_are_gone_give_way_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idrange, "RANGES", 2)
    gone = node(tmp_path, "gone")
    uuids = [str(UUID(int=n)) for n in range(3)]
    taken = [gone.allocate(uuid) for uuid in uuids[:2]]
    with pytest.raises(NotEnoughResources):
        node(tmp_path).allocate(uuids[2])
    (tmp_path / "gone").rename(tmp_path / "away")
    assert node(tmp_path).allocate(uuids[2]) in taken


def test_prune(tmp_path: Path) -> None:
    ours, theirs = node(tmp_path, "a"), node(tmp_path, "b")
    keep, drop = str(uuid4()), str(uuid4())
    for ranges in (ours, theirs):
        ranges.allocate(keep)
        ranges.allocate(drop)
    assert ours.prune({keep}) == [drop]
    assert set(ours.all()) == {keep}
    assert set(theirs.all()) == {keep, drop}
