"""Identity: UUIDs, numbers of the old kind, names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import BadValue
from pyvz.model.environment import canonical_uuid, check_name, is_legacy_ctid


@given(st.uuids())
def test_every_spelling_of_a_uuid(uuid: object) -> None:
    text = str(uuid)
    for spelling in (text, text.upper(), f"{{{text}}}", f"{{{text.upper()}}}"):
        assert canonical_uuid(spelling) == text


@pytest.mark.parametrize("text", ["", "101", "{}", "a" * 36, "{" + "0" * 34 + "}", "ct1"])
def test_no_uuid(text: str) -> None:
    assert canonical_uuid(text) is None


@pytest.mark.parametrize(
    "name", ["ct1", "a b", "web-1.example_{x}+", "контейнер", "101", "x" * 255]
)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "-x", " x", "x ", "a/b", "a\nb", 'a"b', "a$b", "a\0b", "x" * 256]
)
def test_refused_names(name: str) -> None:
    with pytest.raises(BadValue):
        check_name(name)


def test_legacy_ids() -> None:
    assert is_legacy_ctid("101")
    assert is_legacy_ctid("2147483644")
    assert not any(map(is_legacy_ctid, ("0", "2147483645", "", "1a", "-1", "\u0661")))
