"""The disks of the machine test: a Debian with its cloud kernel, and what is to be tested.

/var/cache/pyvz-tests/
  machine-<suite>-<key>/     built once; the key is a hash of everything that goes in
    root.img vmlinuz initrd  ext4 without a partition table, booted with QEMU's -kernel
  wheels-<key>/              the Python packages of pyproject.toml, for a machine without a network

The root disk holds no line of pyvz: the sources come on a second disk that is made for each run,
so that the expensive half is built once.  Every file appears by rename, under a lock.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from images import CACHE, REPO, debian_mirror, key, locked, run

# fmt: off
PACKAGES = [
    "linux-image-cloud-amd64", "initramfs-tools", "systemd", "systemd-sysv", "udev", "dbus",
    "kmod", "iproute2", "procps", "python3", "python3-venv", "ca-certificates", "mmdebstrap",
    "zstd", "xz-utils", "lz4", "tar", "gzip", "acl", "attr", "e2fsprogs", "busybox-static",
    "libseccomp2", "util-linux", "apt", "quota", "criu", "iptables", "openssh-server",
]
# fmt: on


# The machine with hardware: a kernel with drivers, and QEMU for the machines in it.
CLOUD, FULL = "linux-image-cloud-amd64", "linux-image-amd64"
HARDWARE = ["qemu-system-x86", "ovmf"]


def packages(*, hardware: bool = False) -> list[str]:
    """What the machine has: the list above, and all that bootstrap wants."""
    text = (REPO / "script/bootstrap").read_text()
    wanted = re.search(r"^PACKAGES=\(([^)]*)\)", text, re.MULTILINE)
    found = [*PACKAGES, *(wanted[1].split() if wanted else ())]
    return [FULL, *(each for each in found if each != CLOUD), *HARDWARE] if hardware else found


# What the first file system and the disks need; everything else is loaded by udev.
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")

# fmt: off
MASKED = [
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "dpkg-db-backup.timer", "systemd-timesyncd.service", "getty@tty1.service",
    "serial-getty@ttyS0.service", "systemd-networkd-wait-online.service",
]
# fmt: on

UNIT = """\
[Unit]
Description=the machine test of pyvz
RequiresMountsFor=/payload

[Service]
Type=exec
ExecStart=/usr/bin/python3 /payload/guest.py
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=journal+console
StandardError=journal+console
Environment=HOME=/root

[Install]
WantedBy=multi-user.target
"""

CUSTOMIZE = r"""
set -e
root=$1
echo machine >"$root/etc/hostname"
printf '127.0.0.1 localhost machine\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /payload ext4 ro 0 0\n' >"$root/etc/fstab"
mkdir -p "$root/payload"
chroot "$root" passwd -q -d root
for unit in {masked}; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
cat >"$root/etc/systemd/system/machine-test.service" <<'UNIT'
{unit}UNIT
chroot "$root" systemctl --quiet enable machine-test.service
printf 'MODULES=list\nCOMPRESS=zstd\n' >"$root/etc/initramfs-tools/conf.d/machine"
printf '%s\n' {modules} >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u >/dev/null
"""


class Image(NamedTuple):
    """A bootable root file system, its kernel and its initial RAM disk."""

    root: Path
    kernel: Path
    initrd: Path


def base_image(suite: str, *, hardware: bool = False) -> Image:
    """The machine's root disk, built when it is not there yet (about two minutes)."""
    script = CUSTOMIZE.format(masked=" ".join(MASKED), unit=UNIT, modules=" ".join(INITRD_MODULES))
    included = packages(hardware=hardware)
    name = f"machine-{suite}-{key(script, *included)}"
    folder = CACHE / name
    image = Image(folder / "root.img", folder / "vmlinuz", folder / "initrd")
    with locked(name):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{name}.new.") as work:
                build_base(suite, script, included, Path(work))
                (Path(work) / "out").rename(folder)
    return image


def build_base(suite: str, script: str, included: list[str], work: Path) -> None:
    """mmdebstrap with the node's own apt configuration, then an ext4 made from the tree."""
    tree, out, hook = work / "tree", work / "out", work / "customize"
    out.mkdir()
    hook.write_text("#!/bin/bash\n" + script)
    hook.chmod(0o755)
    # fmt: off
    run("mmdebstrap", "--variant=minbase", f"--include={','.join(included)}",
        "--aptopt=Acquire::Retries \"3\"", f"--customize-hook={hook} \"$1\"",
        suite, tree, *debian_mirror(), timeout=1200)
    # fmt: on
    for pattern, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd")):
        shutil.copyfile(sorted((tree / "boot").glob(pattern))[-1], out / name)
    make_ext4(tree, out / "root.img", size="6G")
    shutil.rmtree(tree)


def make_ext4(tree: Path, image: Path, *, size: str) -> None:
    """An ext4 file system in a sparse file that holds what TREE holds."""
    # fmt: off
    run("mke2fs", "-q", "-t", "ext4", "-F", "-E", "lazy_itable_init=1,root_owner=0:0",
        "-d", tree, image, size)
    # fmt: on


def wheels() -> Path:
    """A folder with the Python packages that bootstrap installs, as wheels."""
    with (REPO / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    name = f"wheels-{key(*wanted)}"
    folder = CACHE / name
    with locked(name):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{name}.new.") as work:
                target = Path(work) / "out"
                # fmt: off
                run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-input",
                    "--disable-pip-version-check", "--wheel-dir", target, *wanted)
                # fmt: on
                target.rename(folder)
    return folder


def payload(work: Path, cache: dict[str, Path], kind: str, steps: str = "") -> Path:
    """The second disk: the sources as they stand, the wheels, the template cache, guest*.py.

    cache: what is in the template cache, by name.  kind: of the lists of steps in guest.py.
    steps: the names of those that are wanted; empty for all.
    """
    tree, image = work / "payload", work / "payload.img"
    tree.mkdir()
    copy_sources(tree / "pyvz")
    shutil.copytree(wheels(), tree / "wheels")
    (tree / "cache").mkdir()
    for name, file in cache.items():
        shutil.copy2(file, tree / "cache" / name)
    for module in Path(__file__).parent.glob("guest*.py"):
        shutil.copy2(module, tree / module.name)
    (tree / "kind").write_text(kind)
    (tree / "steps").write_text(steps)
    used = int(run("du", "-sm", tree).split()[0])
    make_ext4(tree, image, size=f"{used * 5 // 4 + 32}M")
    shutil.rmtree(tree)
    return image


def copy_sources(target: Path) -> None:
    """Every file that git knows or would take, as it stands in the work tree."""
    # fmt: off
    names = run("git", "-c", f"safe.directory={REPO}", "-C", REPO, "ls-files", "-z",
                "--cached", "--others", "--exclude-standard").split("\0")
    # fmt: on
    for name in filter(None, names):
        source = REPO / name
        if not source.is_symlink() and not source.is_file():
            continue  # deleted in the work tree, not yet in the index
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / name, follow_symlinks=False)
