"""A tiny guest for tests of virtual machines: Debian's cloud kernel, busybox, the guest agent.

/var/cache/pyvz-tests/tiny-<key>.iso    boots from a CD drive by isolinux, in seconds under TCG
/var/cache/pyvz-tests/tiny-amd64-<key>.iso    with Debian's full kernel, which has USB and drivers

Everything is in its initial RAM disk.  It says TINY-READY on the serial line, has a root shell
there, runs the guest agent and obeys the power button.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from images import BUSYBOX, CACHE, key, locked, run

PACKAGES = ("isolinux", "syslinux-common", "qemu-guest-agent")
MODULES = (
    *("virtio_pci", "virtio_scsi", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng"),
    *("virtio_balloon", "sd_mod", "sr_mod", "button", "evdev", "ext4", "e1000", "acpi_memhotplug"),
    "pvpanic-mmio",
)
DRIVERS = ("xhci_pci", "usb_storage", "usbhid", "hid_generic", "nvme", "e1000e")  # of the full one

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run /var/run /tmp
mount -t devpts pts /dev/pts
while read -r module; do insmod "$module" 2>/dev/null; done </modules
echo online_movable >/sys/devices/system/memory/auto_online_blocks 2>/dev/null
hostname tiny
ip link set lo up
for try in 1 2 3 4 5; do
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] && agent=/dev/${port##*/}
    done
    [ -n "$agent" ] && break
    sleep 0.2
done
mkdir -p /usr/local/var/run /var/log
[ -n "$agent" ] && qemu-ga -m virtio-serial -p $agent -t /run -d -f /run/ga.pid -l /run/ga.log
acpid -p /run/acpid.pid -l /run/acpid.log
echo TINY-READY >/dev/ttyS0
while :; do setsid cttyhack sh -l </dev/ttyS0 >/dev/ttyS0 2>&1; sleep 1; done
"""
SHUTDOWN = r"""#!/bin/sh
for word; do [ "$word" = -r ] && { sync; exec reboot -f; }; done
sync
exec poweroff -f
"""
CHPASSWD = r"""#!/bin/sh
while IFS=: read -r user hash; do sed -i "s|^$user:[^:]*|$user:$hash|" /etc/shadow; done
"""
POWER = "#!/bin/sh\nsync\nexec poweroff -f\n"
CFG = """default tiny
prompt 0
timeout 1
label tiny
 kernel /vmlinuz
 append initrd=/initrd console=ttyS0 quiet panic=1 net.ifnames=0 mitigations=off
"""


def _kernel_package(flavour: str) -> str:
    """The package that linux-image-FLAVOUR depends on."""
    for line in run("apt-cache", "depends", f"linux-image-{flavour}").splitlines():
        if "Depends: linux-image-" in line:
            return line.split()[-1]
    pytest.fail(f"apt knows no linux-image-{flavour}")


def _unpack(work: Path, *packages: str) -> Path:
    done = subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages],
        cwd=work,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.fail(f"apt-get download: {done.stderr[-500:]}")
    for package in work.glob("*.deb"):
        run("dpkg-deb", "-x", package, work / "tree")
    return work / "tree"


def _modules(tree: Path, root: Path, wanted: tuple[str, ...]) -> None:
    """Copy the modules with all they need, and a list in the order of insertion."""
    version = next((tree / "lib/modules").iterdir()).name
    run("depmod", "-b", tree, version)
    listed: list[str] = []
    for name in wanted:
        done = subprocess.run(
            ["modprobe", "-d", tree, "-S", version, "--show-depends", name],
            check=False,
            capture_output=True,
            text=True,
        )
        for line in done.stdout.splitlines():
            word = line.split()
            if word[0] == "insmod" and word[1] not in listed:
                listed.append(word[1])
    names = []
    for path in listed:
        if not Path(path).exists():
            continue
        shutil.copy(path, root / "modules.d")
        names.append(f"/modules.d/{Path(path).name}\n")
    # virtio_ring must come before virtio in 6.1: it names a symbol of it.
    (root / "modules").write_text("".join(sorted(names, key=lambda n: "virtio_ring" not in n)))


def _agent(tree: Path, root: Path) -> None:
    program = tree / "usr/sbin/qemu-ga"
    shutil.copy(program, root / "sbin/qemu-ga")
    for line in run("ldd", program).splitlines():
        path = next((word for word in line.split() if word.startswith("/")), None)
        if path:
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _tree(tree: Path, root: Path, modules: tuple[str, ...]) -> None:
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "etc/acpi/PWRF"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("root", "run", "modules.d"):
        (root / name).mkdir()
    shutil.copy(BUSYBOX, root / "bin/busybox")
    files = {
        "init": INIT,
        "sbin/shutdown": SHUTDOWN,
        "usr/sbin/chpasswd": CHPASSWD,
        "etc/acpi/PWRF/00000080": POWER,
    }
    for name, text in files.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    (root / "etc/shadow").chmod(0o600)
    _modules(tree, root, modules)
    _agent(tree, root)


def _build(work: Path, target: Path, flavour: str, modules: tuple[str, ...]) -> None:
    (work / "debs").mkdir()
    tree = _unpack(work / "debs", _kernel_package(flavour), *PACKAGES)
    root, disc = work / "root", work / "disc"
    root.mkdir()
    disc.mkdir()
    _tree(tree, root, modules)
    with (disc / "initrd").open("wb") as file:
        subprocess.run(
            ["sh", "-c", "find . | busybox cpio -o -H newc | gzip -1"],
            cwd=root,
            check=True,
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    shutil.copy(next((tree / "boot").glob("vmlinuz-*")), disc / "vmlinuz")
    shutil.copy(tree / "usr/lib/ISOLINUX/isolinux.bin", disc)
    shutil.copy(tree / "usr/lib/syslinux/modules/bios/ldlinux.c32", disc)
    (disc / "isolinux.cfg").write_text(CFG)
    # fmt: off
    run("genisoimage", "-quiet", "-o", work / "tiny.iso", "-b", "isolinux.bin", "-c", "boot.cat",
        "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-R", disc)
    # fmt: on
    (work / "tiny.iso").rename(target)


@pytest.fixture(scope="session")
def tiny_iso() -> Path:
    """The disc, built when it is not there yet (half a minute)."""
    return _made("tiny", "cloud-amd64", MODULES)


@pytest.fixture(scope="session")
def tiny_drivers_iso() -> Path:
    """The disc with the full kernel and drivers of devices that a node may pass through."""
    return _made("tiny-amd64", "amd64", (*MODULES, *DRIVERS))


def _made(name: str, flavour: str, modules: tuple[str, ...]) -> Path:
    source = Path(__file__).read_text()
    target = CACHE / f"{name}-{key(source)}.iso"
    with locked("tiny-guest"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="tiny.new.") as work:
                _build(Path(work), target, flavour, modules)
    return target
