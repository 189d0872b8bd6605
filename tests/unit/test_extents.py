"""Differences of two clones, as values: compared byte by byte with a model."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pyvz.linux.extents import Extent, Range, changed

SIZE = 40

# A file of SIZE bytes as the physical place of each byte (None: a hole, -1: unknown).
files = st.lists(
    st.one_of(st.none(), st.just(-1), st.integers(0, 5)), min_size=SIZE, max_size=SIZE
).map(
    lambda bases: [
        None if b is None else -1 if b < 0 else b * 1000 + i for i, b in enumerate(bases)
    ]
)


def extents(places: list[int | None]) -> list[Extent]:
    """The places as FIEMAP would tell them, one extent per run."""
    found: list[Extent] = []
    for at, place in enumerate(places):
        if place is None:
            continue
        last = found[-1] if found else None
        if (
            last
            and last.end == at
            and place != -1
            and last.physical is not None
            and (last.physical + last.length == place)
        ):
            found[-1] = last._replace(length=last.length + 1)
        else:
            found.append(Extent(at, 1, None if place == -1 else place))
    return found


def touched(ranges: list[Range]) -> set[int]:
    return {at for each in ranges for at in range(each.start, each.end)}


@given(files, files)
def test_equal_to_the_model(old: list[int | None], new: list[int | None]) -> None:
    found = changed(extents(old), extents(new))
    expected = {at for at in range(SIZE) if old[at] != new[at] or old[at] == -1}
    assert touched(found) == expected
    assert found == sorted(found)
    assert all(a.end < b.start for a, b in pairwise(found))


def test_what_is_unknown_differs_from_itself() -> None:
    vague = [Extent(0, 10, None)]
    assert changed(vague, vague) == [Range(0, 10)]


def test_a_shared_extent_seen_in_parts_is_equal() -> None:
    whole = [Extent(0, 100, 5000)]
    parts = [Extent(0, 30, 5000), Extent(30, 70, 5030)]
    assert changed(whole, parts) == []


def test_written_discarded_and_moved() -> None:
    old = [Extent(0, 10, 100), Extent(20, 10, 200), Extent(40, 10, 300)]
    new = [Extent(0, 10, 100), Extent(40, 10, 900), Extent(60, 5, 400)]
    assert changed(old, new) == [Range(20, 10), Range(40, 10), Range(60, 5)]
