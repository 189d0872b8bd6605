"""A TPM of a machine's own: what it knows lives as long as the machine's state, and no longer."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from realnode import end, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = [
    pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img", "program:swtpm"),
    pytest.mark.long,
    pytest.mark.timeout(1200),
]

REGISTER = "/sys/class/tpm/tpm0/pcr-sha256/16"
# TPM2_PCR_Extend of register 16 (TCG, "TPM 2.0 Part 3: Commands", section 22.2), with no password.
_HEAD = "8002 00000041 00000182 00000010 00000009 40000009 0000 01 0000 00000001 000b"
EXTEND = bytes.fromhex(_HEAD) + b"pyvz" * 8


def extended(guest: Guest) -> str:
    """Put something into a register and return what is in it then."""
    octets = "".join(f"\\x{each:02x}" for each in EXTEND)
    guest.inside(f"printf '{octets}' >/dev/tpm0")
    return guest.inside(f"cat {REGISTER}")


def companions(guest: Guest) -> list[int]:
    """Return the swtpms that keep the machine's state open."""
    wanted = os.fspath(guest.home / "tpm")
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):  # others' processes end
            held = {os.readlink(each.path) for each in os.scandir(f"/proc/{pid}/fd")}
            if wanted in held and pid != os.getpid():
                found.append(pid)
    return found


def test_a_tpm(guest: Guest) -> None:
    guest.prlctl("set", "vm1", "--tpm", "on")
    assert "tpm0 (+)" in guest.prlctl("list", "-i", "vm1")
    guest.start()
    empty = guest.inside(f"cat {REGISTER}")
    once = extended(guest)
    assert once != empty
    owner = Path(f"/proc/{guest.qemu}").stat().st_uid
    (pid,) = companions(guest)
    assert owner
    assert re.search(rf"^Uid:\s+{owner}\s", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert guest.home.name in Path(f"/proc/{pid}/cgroup").read_text()

    guest.prlctl("suspend", "vm1")
    assert not companions(guest)
    guest.prlctl("resume", "vm1")
    assert guest.inside(f"cat {REGISTER}") == once
    guest.prlctl("snapshot", "vm1")
    assert extended(guest) != once
    guest.kill_vzd()
    guest.prlctl("snapshot-switch", "vm1")
    assert guest.inside(f"cat {REGISTER}") == once

    (pid,) = companions(guest)
    end(pid, signal.SIGKILL)
    assert guest.inside("echo alive") == "alive\n"  # without its TPM
    guest.prlctl("stop", "vm1", "--kill")
    guest.prlctl("clone", "vm1", "--name", "copy")
    # Another machine, another TPM.
    assert len(list((guest.world.root / "vz/vmprivate").glob("*/tpm"))) == 1


def test_what_a_tpm_leaves_is_not_trusted(guest: Guest) -> None:
    guest.prlctl("set", "vm1", "--tpm", "on")
    place = guest.home / "tpm"
    place.mkdir()
    (place / "tpm2-00.permall").symlink_to("/etc/shadow")
    assert "not what a TPM leaves" in guest.prlctl("start", "vm1", code=255)
    assert guest.status == "stopped"
    assert Path("/etc/shadow").stat().st_uid == 0
