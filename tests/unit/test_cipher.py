"""The cipher that a connection to another node prefers."""

from __future__ import annotations

import pytest

from pyvz.migration import cipher

CHACHA, CTR, GCM = "chacha20-poly1305@openssh.com", "aes128-ctr", "aes128-gcm@openssh.com"
X86 = "processor\t: 0\nflags\t\t: fpu vme aes avx\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd aes pmull\n"


@pytest.mark.parametrize(
    ("text", "has"),
    [(X86, True), (ARM, True), (X86.replace("aes", "x"), False), ("", False)],
)
def test_who_has_instructions_for_aes(text: str, has: bool) -> None:
    assert cipher.has_aes(text) is has


def test_gcm_comes_first_and_nothing_is_lost() -> None:
    found = cipher.ordered([CHACHA, CTR, GCM], [CHACHA, CTR, GCM])
    assert found == ["-o", f"Ciphers={GCM},{CHACHA},{CTR}"]


@pytest.mark.parametrize("chosen", [[CTR], [CHACHA, GCM], [GCM, CTR, CHACHA], []])
def test_what_was_chosen_stays(chosen: list[str]) -> None:
    assert cipher.ordered(chosen, [CHACHA, CTR, GCM]) == []
