"""Sizes as OpenVZ writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import BadValue
from pyvz.units import (
    GIB,
    MIB,
    PAGE_SIZE,
    UNLIMITED,
    bytes_to_pages,
    pages_to_bytes,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("512", MIB, 512 * MIB),
        ("512", 1, 512),
        ("1g", 1, GIB),
        ("2.5M", 1, 2 * MIB + MIB // 2),
        ("10K", MIB, 10240),
        ("7b", MIB, 7),
        ("unlimited", 1, UNLIMITED),
        ("99999999999999999999T", 1, UNLIMITED),
        (" 1T ", 1, 1 << 40),
    ],
)
def test_sizes(text: str, unit: int, size: int) -> None:
    assert parse_size(text, default_unit=unit) == size


@pytest.mark.parametrize("text", ["", "-1", "1KB", "1 K", "M", "1P", "1e3", "0x10", "1.", "1:2"])
def test_refused(text: str) -> None:
    with pytest.raises(BadValue):
        parse_size(text, default_unit=1)


def test_pages_suffix_where_pages_apply() -> None:
    assert parse_size("2P", default_unit=1, pages=True) == 2 * PAGE_SIZE


@given(st.integers(0, UNLIMITED // PAGE_SIZE - 1))
def test_pages_round_trip(pages: int) -> None:
    assert bytes_to_pages(pages_to_bytes(pages)) == pages


def test_unlimited_stays_unlimited() -> None:
    assert bytes_to_pages(UNLIMITED) == UNLIMITED
    assert pages_to_bytes(UNLIMITED) == UNLIMITED
