"""Live migration by libvirt, as a peer of bench/vmmove.py: two libvirtds with its QEMU driver.

`virsh migrate --live --copy-storage-all` over TCP on the loopback, neither encrypted nor tunnelled.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from uuid import uuid4

from bench.libvirtd import Libvirtd, missing

__all__ = ["Pair", "missing"]
_PATIENCE = 400.0
# The guest of bench/vmmove.py: the same memory, processor, disk and disc.
_DOMAIN = """<domain type='qemu'><name>bench</name><uuid>{uuid}</uuid>
<memory unit='MiB'>160</memory>
<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type><boot dev='cdrom'/></os>
<features><acpi/></features><cpu mode='maximum'/><on_poweroff>destroy</on_poweroff><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='scsi' model='virtio-scsi'/>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
<target dev='sda' bus='scsi'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{iso}'/>
<target dev='sdb' bus='sata'/><readonly/></disk>
<serial type='file'><source path='{log}' append='on'/></serial><memballoon model='none'/>
</devices></domain>
"""


class Pair:
    """Two libvirtds, and a guest that has booted on one of them; `move` takes it to the other."""

    def __init__(self, work: Path, image: Path, iso: Path) -> None:
        self._image, self._iso, self._uuid = image, iso, uuid4()
        self._homes = [work / name for name in ("la", "lb")]
        self._daemons: list[Libvirtd] = []
        for home in self._homes:
            home.mkdir()
            self._daemons.append(Libvirtd(home, self._domain(home)))
        self._at = 0
        subprocess.run(["cp", image, self._homes[0] / "disk"], check=True)
        self._daemons[0].virsh("start", "bench")
        deadline = time.monotonic() + _PATIENCE
        while "TINY-READY" not in (self._homes[0] / "console").read_text():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.2)

    def _domain(self, home: Path) -> str:
        words = {"uuid": self._uuid, "disk": home / "disk", "iso": self._iso}
        return _DOMAIN.format(**words, log=home / "console")

    def move(self) -> tuple[float, float]:
        """Move the guest; seconds of all of it, and of those that it stood still."""
        here, there = self._daemons[self._at], self._daemons[1 - self._at]
        home = self._homes[1 - self._at]
        told = subprocess.check_output(["qemu-img", "info", "--output=json", self._image])
        size = str(json.loads(told)["virtual-size"])
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", home / "disk", size]
        subprocess.run(argv, check=True)
        target = home / "target.xml"
        target.write_text(self._domain(home))
        words = ["migrate", "bench", there.uri, "tcp://127.0.0.1", "--live", "--copy-storage-all"]
        began = time.monotonic()
        here.virsh(*words, "--xml", str(target))
        took = time.monotonic() - began
        self._at = 1 - self._at
        statistics = here.virsh("domjobinfo", "bench", "--completed").stdout
        found = re.search(r"Total downtime:\s*([\d.]+)\s*ms", statistics)
        return took, float(found[1]) / 1000 if found else 0.0

    def end(self) -> None:
        """End the guest and both libvirtds."""
        for daemon in self._daemons:
            daemon.virsh("destroy", "bench", check=False)
            daemon.end()
