"""The cipher of an ssh connection: AES-GCM first where the processor has instructions for AES.

OpenSSH prefers ChaCha20-Poly1305, which costs both nodes half as much again for each byte.  Who has
chosen ciphers in the ssh configuration or by `--ssh` gets what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyvz.errors import VZError
from pyvz.linux import run
from pyvz.migration import address as addresses
from pyvz.migration.address import Address

_CPUINFO: Final = Path("/proc/cpuinfo")
_TIMEOUT: Final = 30.0  # seconds; `Match exec` in the configuration runs programs


def command(address: Address, options: Sequence[str] = ()) -> list[str]:
    """Return the command that connects to the dispatcher of the node at ADDRESS."""
    return addresses.ssh(address, [*options, *_preference(address, options)])


def _preference(address: Address, options: Sequence[str]) -> list[str]:
    if not has_aes(_CPUINFO.read_text()):
        return []
    try:
        chosen = _ciphers(addresses.asking(address, options))
        default = _ciphers(["ssh", "-F", "none", "localhost"])
    except VZError:
        return []  # ssh itself will say what is wrong
    return ordered(chosen, default)


def has_aes(cpuinfo: str) -> bool:
    """Whether a processor does AES itself, by /proc/cpuinfo (x86 says flags, ARM Features)."""
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return "aes" in words.split()
    return False


def ordered(chosen: Sequence[str], default: Sequence[str]) -> list[str]:
    """Return the option that puts GCM first, unless somebody has chosen.  Pure."""
    quick = [each for each in default if "-gcm" in each]
    if list(chosen) != list(default) or not quick:
        return []
    return ["-o", "Ciphers=" + ",".join([*quick, *(each for each in default if each not in quick)])]


def _ciphers(argv: Sequence[str]) -> list[str]:
    """Ask ssh which it would offer (ssh -G, ssh(1))."""
    told = run.run([argv[0], "-G", *argv[1:]], timeout=_TIMEOUT).stdout
    for line in told.splitlines():
        name, _, value = line.partition(" ")
        if name == "ciphers":
            return value.split(",")
    return []
