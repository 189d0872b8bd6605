"""libvirt's QEMU driver as a peer: a libvirtd of our own, started by hand below a directory.

Its fixed places (/etc/libvirt, /run/libvirt, ...) are directories of ours in its mount namespace;
its socket is in the directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

PROGRAM = "/usr/sbin/libvirtd"
DRIVER = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"
_PLACES = {"etc": "/etc/libvirt", "run": "/run/libvirt", "lib": "/var/lib/libvirt",
           "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"}  # fmt: skip
_PATIENCE = 60.0
_USER = "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
_GROUP = "libvirt-qemu:x:64055:\n"
# The same hardware as ours, as far as libvirt can be told.
_DOMAIN = """<domain type='qemu'><name>bench</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='maximum'/>
<features><acpi/></features><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='scsi' model='virtio-scsi'/><memballoon model='virtio'/>
<serial type='pty'/><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/>
</channel><video><model type='vga'/></video><rng model='virtio'>
<backend model='random'>/dev/urandom</backend></rng>
</devices></domain>
"""


def missing() -> str:
    """Return what is not installed, "" when all is there."""
    if not Path(PROGRAM).exists() or not Path(DRIVER).exists():
        return "libvirt's QEMU driver (package libvirt-daemon-driver-qemu)"
    return "" if shutil.which("virsh") else "virsh (package libvirt-clients)"


class Libvirtd:
    """A libvirtd with one domain, `bench`; `end` leaves nothing behind.

    It is a host of its own for libvirt, so that domains can be moved between two of them.
    """

    def __init__(self, home: Path, domain: str = _DOMAIN) -> None:
        self._home = home
        self._socket = home / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self._socket}"
        lines = [f'unix_sock_dir = "{home}"', 'auth_unix_rw = "none"', 'auth_unix_ro = "none"']
        lines.append(f'host_uuid = "{uuid4()}"')
        steps = ["set -e"]
        for name, place in _PLACES.items():
            (home / name).mkdir(parents=True)
            steps.append(f"mkdir -p {place}; mount --bind {home / name} {place}")
        # The driver wants to know its user by name, although it is told to use another.
        for name, line in (("passwd", _USER), ("group", _GROUP)):
            (home / name).write_text(Path(f"/etc/{name}").read_text() + line)
            steps.append(f"mount --bind {home / name} /etc/{name}")
        (home / "libvirtd.conf").write_text("\n".join([*lines, ""]))
        settings = ["user", "group"]
        words = [f'{name} = "root"' for name in settings]
        words += ['security_driver = "none"', 'stdio_handler = "file"', "remember_owner = 0"]
        words += ["cgroup_controllers = [ ]", ""]  # their names would be those of the other one
        (home / "etc/qemu.conf").write_text("\n".join(words))
        steps.append(f"exec {PROGRAM} -f {home}/libvirtd.conf -p {home}/pid")
        argv = ["unshare", "-m", "--propagation", "slave", "sh", "-c", "\n".join(steps)]
        with (home / "output").open("w") as output:
            self._process = subprocess.Popen(argv, stdout=output, stderr=output)
        deadline = time.monotonic() + _PATIENCE
        while self.virsh("version", check=False).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((home / "output").read_text()[-1000:])
            time.sleep(0.2)
        (home / "domain.xml").write_text(domain)
        self.virsh("define", os.fspath(home / "domain.xml"))

    def virsh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run virsh on it."""
        argv = ["virsh", "-q", "-c", self.uri, *words]
        return subprocess.run(argv, check=check, capture_output=True, text=True)

    def start(self) -> float:
        """Start the domain and end it; return the milliseconds that `virsh start` took."""
        began = time.monotonic()
        self.virsh("start", "bench")
        took = (time.monotonic() - began) * 1000
        self.virsh("destroy", "bench")
        return took

    def list(self) -> float:
        """Return the milliseconds of `virsh list --all`."""
        began = time.monotonic()
        self.virsh("list", "--all")
        return (time.monotonic() - began) * 1000

    def end(self) -> None:
        """End it."""
        self.virsh("undefine", "bench", check=False)
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
