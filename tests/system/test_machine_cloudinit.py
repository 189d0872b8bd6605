"""The seed of cloud-init, as a guest finds it: by an imported image, and in a saved state."""

from __future__ import annotations

import io
import json
import os
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from realnode import world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2vPVqMjSQjXy5vSF5dE0yIxNSOKyzXBvTzzdGkP3Xz me"


# The label is at byte 40 of the volume's descriptor (ECMA-119, 8.4.7).
VOLUME = """for disc in /dev/sr*; do
    label=$(dd if=$disc bs=1 skip=32808 count=6 2>/dev/null)
    if [ "$label" = cidata ]; then base64 $disc; fi
done"""


def seed(guest: Guest) -> dict[str, Any]:
    """Return what is in the volume labelled cidata, read by the guest and parsed here."""
    disc = pycdlib.PyCdlib()
    disc.open_fp(io.BytesIO(b64decode(guest.inside(VOLUME))))
    found: dict[str, Any] = {}
    for name in ("meta-data", "user-data", "network-config"):
        read = io.BytesIO()
        disc.get_file_from_iso_fp(read, joliet_path=f"/{name}")
        found[name] = json.loads(read.getvalue().decode().removeprefix("#cloud-config\n"))
    disc.close()
    return found


def test_a_guest_finds_its_seed(guest: Guest, tmp_path: Path) -> None:
    key = tmp_path / "id.pub"
    key.write_text(f"{KEY}\n")
    # As an image of a cloud; the tiny guest comes from its own disc.
    image = tmp_path / "cloud.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"], check=True)
    disc = next(line for line in guest.prlctl("list", "-i", "vm1").splitlines() if ".iso" in line)
    iso = disc.split("image='")[1].split("'")[0]
    guest.prlctl("delete", "vm1")
    words = ("--vmtype", "vm", "--import", os.fspath(image), "--ssh-keys", os.fspath(key))
    guest.prlctl("create", "vm1", *words)
    assert "Cloud-init: on" in guest.prlctl("list", "-i", "vm1")
    guest.prlctl("set", "vm1", "--memsize", "192", "--cpus", "1", "--hostname", "a.example.org")
    guest.prlctl("set", "vm1", "--device-set", "cdrom0", "--image", iso)
    guest.prlctl("set", "vm1", "--userpasswd", "root:secret")
    guest.start()
    told = seed(guest)
    assert told["meta-data"] == {"instance-id": guest.home.name, "local-hostname": "a.example.org"}
    assert told["user-data"]["ssh_authorized_keys"] == [KEY]
    users = told["user-data"]["chpasswd"]["users"]
    assert [(each["name"], each["password"][:3]) for each in users] == [("root", "$6$")]
    assert told["network-config"]["version"] == 2
    # What it was started with is what its saved state has, whatever is set meanwhile.
    guest.prlctl("set", "vm1", "--cloud-init", "no")
    assert "Cloud-init" not in guest.prlctl("list", "-i", "vm1")
    guest.prlctl("suspend", "vm1")
    guest.prlctl("resume", "vm1")
    assert seed(guest) == told
    guest.prlctl("stop", "vm1", "--kill")
    guest.prlctl("start", "vm1")
    assert b"cidata" not in Path(f"/proc/{guest.qemu}/cmdline").read_bytes()
