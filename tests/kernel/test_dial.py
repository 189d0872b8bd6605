"""Connections to another node that do not come about."""

from __future__ import annotations

import time

import pytest

from pyvz.errors import ConnectionFailed
from pyvz.migration import address as addresses
from pyvz.migration import cipher, dial
from pyvz.migration.address import Address

THERE = addresses.parse("somewhere")


@pytest.mark.parametrize("head_start", [0.0, 0.2])
def test_an_ssh_that_is_gone_at_once(monkeypatch: pytest.MonkeyPatch, head_start: float) -> None:
    """It says so in the same words, whether it ends before our first byte or after it."""
    monkeypatch.setattr(addresses, "ssh", lambda *_: ["sh", "-c", "echo refused >&2; exit 255"])
    greet = dial.greet

    def later(*arguments: object) -> object:
        time.sleep(head_start)
        return greet(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dial, "greet", later)
    expected = pytest.raises(ConnectionFailed, match="Cannot connect to somewhere")
    with expected as failed, dial.dial(THERE, "me"):
        pytest.fail("connected")
    assert "refused" in str(failed.value.details)


def test_a_choice_on_the_command_line_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ssh of this machine is asked."""
    monkeypatch.setattr(cipher, "has_aes", lambda _: True)
    node = Address("node", None, 22)
    assert "Ciphers=" not in " ".join(cipher.command(node, ["-F", "none", "-c", "aes128-ctr"]))
    assert "Ciphers=aes128-gcm@openssh.com" in " ".join(cipher.command(node, ["-F", "none"]))


def test_a_configuration_that_is_broken_is_left_to_ssh() -> None:
    argv = cipher.command(Address("node", None, None), ["-F", "/does/not/exist"])
    assert argv[:3] == ["ssh", "-F", "/does/not/exist"]
    assert "Ciphers=" not in " ".join(argv)
