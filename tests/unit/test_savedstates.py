"""Snapshots.xml: what is written is read back, what is hostile is refused."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import AlreadyExists, BadValue, SnapshotNotFound, StorageError
from pyvz.store import savedstates
from pyvz.store.savedstates import SavedState, SavedStates

A, B, C, D = (f"{{0000000{n}-1111-4222-8333-444444444444}}" for n in range(4))
EMPTY = "<Name/><DateTime/><Creator/><ScreenShot/><Description/>"


def chain(*guids: str) -> SavedStates:
    states = SavedStates()
    for guid in guids:
        states = states.with_snapshot(SavedState(guid, name=guid[7]))
    return states


def test_written_as_libvzctl_reads_it() -> None:
    states = SavedStates().with_snapshot(
        SavedState(A, "", "a<b", "2026-01-02 03:04:05", "x]]>y", "poweroff")
    )
    assert states.render() == (
        '<?xml version="1.0"?>\n<VirtuozzoSavedStates>\n  <SavedStateItem guid="">\n'
        "    <Name/>\n    <DateTime/>\n    <Creator/>\n    <ScreenShot/>\n    <Description/>\n"
        f'    <SavedStateItem guid="{A}" current="yes" state="poweroff">\n'
        "      <Name>a&lt;b</Name>\n      <DateTime>2026-01-02 03:04:05</DateTime>\n"
        "      <Creator/>\n      <ScreenShot/>\n"
        "      <Description><![CDATA[x]]]]><![CDATA[>y]]></Description>\n"
        "    </SavedStateItem>\n  </SavedStateItem>\n</VirtuozzoSavedStates>\n"
    )
    assert savedstates.parse(states.render()) == states
    assert savedstates.parse(SavedStates().render()) == SavedStates()


def test_a_file_of_the_original_is_understood() -> None:
    text = (
        f'<VirtuozzoSavedStates><SavedStateItem guid="">{EMPTY}'
        f'<SavedStateItem guid="{A.upper()}"><Name>one</Name><DateTime/><Description/>'
        f'<SavedStateItem guid="{B}" current="yes">{EMPTY}</SavedStateItem></SavedStateItem>'
        f'<SavedStateItem guid="{C}">{EMPTY}</SavedStateItem>'
        "</SavedStateItem></VirtuozzoSavedStates>"
    )
    states = savedstates.parse(text)
    assert [(item.guid, item.parent) for item in states.items] == [(A, ""), (C, ""), (B, A)]
    assert states.current == B


def test_the_tree_changes() -> None:
    states = chain(A, B, C)
    assert [item.parent for item in states.items] == ["", A, B]
    side = states.switched(A).with_snapshot(SavedState(D))
    assert side.get(D).parent == A
    assert side.without(B).get(C).parent == A
    assert states.without(C).current == B
    assert side.without_subtree(A) == SavedStates()
    assert states.without_subtree(B).current == A
    assert side.without_subtree(B).current == D
    assert [item.guid for item in side.subtree(B)] == [B, C]
    assert states.get(A[1:-1].upper()).guid == A
    with pytest.raises(SnapshotNotFound):
        states.switched(D)
    with pytest.raises(AlreadyExists):
        states.with_snapshot(SavedState(A))
    with pytest.raises(BadValue):
        states.get("../../etc/passwd")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a/>",
        "<VirtuozzoSavedStates>",
        '<!DOCTYPE x [<!ENTITY a "b">]><VirtuozzoSavedStates>&a;</VirtuozzoSavedStates>',
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><VirtuozzoSavedStates/>',
        "<VirtuozzoSavedStates><SavedStateItem guid=''>"
        "<SavedStateItem guid='../x'/></SavedStateItem></VirtuozzoSavedStates>",
        "<VirtuozzoSavedStates><SavedStateItem guid=''>"
        f"<SavedStateItem guid='{A}'/><SavedStateItem guid='{A}'/>"
        "</SavedStateItem></VirtuozzoSavedStates>",
        "<VirtuozzoSavedStates><SavedStateItem guid=''>"
        "<SavedStateItem/></SavedStateItem></VirtuozzoSavedStates>",
        "\udcff",
    ],
)
def test_hostile_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / savedstates.NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StorageError, match=r"Snapshots\.xml"):
        savedstates.load(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / savedstates.NAME).symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match="symbolic link"):
        savedstates.load(tmp_path)
    assert savedstates.load(tmp_path / "nowhere") == SavedStates()


@pytest.mark.parametrize("bad", ["a\0", "\x1b[31m", "\ud800", "\r", "x" * 1025])
def test_texts_that_cannot_be_kept(bad: str) -> None:
    with pytest.raises(BadValue):
        SavedStates().with_snapshot(SavedState(A, name=bad))


def test_a_long_chain_is_written_and_read(tmp_path: Path) -> None:
    guids = [f"{{{UUID(int=number)}}}" for number in range(1, 1500)]
    items = tuple(SavedState(g, p) for g, p in zip(guids, ["", *guids], strict=False))
    states = SavedStates(items, guids[-1])
    savedstates.save(tmp_path, states)
    assert savedstates.load(tmp_path) == states


texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\r\x7f\ufffe\uffff").filter(
        lambda char: ord(char) >= 0x20 or char in "\t\n"
    ),
    max_size=40,
)


@given(st.lists(st.tuples(st.uuids(), texts, texts, st.integers(0, 9)), max_size=8))
def test_round_trip(entries: list[tuple[UUID, str, str, int]]) -> None:
    states = SavedStates()
    for uuid, name, description, back in entries:
        guid = f"{{{uuid}}}"
        if states.has(guid):
            continue
        if states.items:
            states = states.switched(states.items[back % len(states.items)].guid)
        states = states.with_snapshot(SavedState(guid, "", name, "", description))
    again = savedstates.parse(states.render())
    assert again.current == states.current
    assert sorted(again.items) == sorted(states.items)
