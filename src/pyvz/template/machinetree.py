"""The tree of a virtual machine's template: packages and settings, as a folder of the node.

It is the container's template with a kernel, a boot loader and the guest agent.  What makes one
machine of many comes by QEMU's firmware configuration (fw_cfg) as a small archive of files, which
`pyvz-guest` unpacks at each boot, before the network is brought up: host name, addresses, name
servers.  So a change of the configuration counts from the next boot on, as in a container.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyvz.errors import TemplateError, Unsupported
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.store.paths import Paths
from pyvz.template import base, settings
from pyvz.template.metadata import OsTemplate

PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "systemd-resolved", "udev",
    "kmod", "dbus", "qemu-guest-agent", "grub-pc-bin", "grub-common", "fdisk", "e2fsprogs",
)  # fmt: skip
_WITHOUT = frozenset({"ifupdown", "isc-dhcp-client", "locales", "bash-completion"})
MODULES = ("virtio_pci", "virtio_scsi", "virtio_blk", "sd_mod", "ata_piix", "ahci", "ext4")
FW_CFG = "opt/io.pyvz/files"

_GUEST = """#!/bin/sh
# Made by pyvz: takes what the node says about this machine, at each boot.
modprobe -q qemu_fw_cfg
file=/sys/firmware/qemu_fw_cfg/by_name/@NAME@/raw
if [ -r "$file" ]; then
    rm -f /etc/systemd/network/50-pyvz-*.network
    base64 -d <"$file" | tar -xz -C / --no-same-owner --no-overwrite-dir
    hostname -F /etc/hostname
fi
ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -A >/dev/null 2>&1
disk=$(findmnt -no SOURCE /)
whole=$(echo "$disk" | sed 's/[0-9]*$//')
grow() { echo ',+' | sfdisk -q --no-reread --force -N 1 "$whole" 2>/dev/null; }
if [ "$disk" != "$whole" ] && grow; then
    partx -u "$whole" 2>/dev/null
    resize2fs "$disk" 2>/dev/null
fi
exit 0
"""
_UNIT = """[Unit]
Description=What the node says about this virtual machine
DefaultDependencies=no
After=systemd-remount-fs.service systemd-udevd.service systemd-tmpfiles-setup.service
Before=network-pre.target systemd-networkd.service sysinit.target ssh.service
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/pyvz-guest

[Install]
WantedBy=sysinit.target
"""
_GRUB = """set timeout=0
insmod part_msdos
insmod ext2
search --no-floppy --label root --set=root
linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0,115200 net.ifnames=0 quiet
initrd /initrd.img
boot
"""
# What is plugged in is used at once; Debian's udev leaves that to the administrator.
_RULES = """SUBSYSTEM=="cpu", ACTION=="add", TEST=="online", ATTR{online}=="0", ATTR{online}="1"
SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"
"""
_UNITS = ("pyvz-guest.service", "systemd-networkd.service", "systemd-resolved.service")
_MASKED = (
    "systemd-networkd-wait-online.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "e2scrub_all.timer", "e2scrub_reap.service",
)  # fmt: skip


def build(paths: Paths, template: OsTemplate, root: Path, progress: Progress) -> None:
    """Fill ROOT; raises Unsupported, TemplateError, NoSpace, CommandFailed, Cancelled."""
    if template.package_manager != "apt" and not template.package_manager.startswith("apt"):
        raise Unsupported(
            f"{template.name}: templates of virtual machines are made with apt only",
            hint="Install from a disc: prlctl create NAME --vmtype vm --distribution NAME",
        )
    recipe = settings.recipe(template, settings.load(paths))
    names = [name for name in recipe.packages if name not in _WITHOUT]
    wanted = tuple(dict.fromkeys((*names, *PACKAGES)))
    manager = base.load(template.package_manager)
    manager.build(root, recipe._replace(packages=wanted), progress)
    progress.stage("Preparing the tree")
    with GuestRoot.open(root) as tree:
        _settings(tree)
    _inside(root, "systemctl", "--quiet", "enable", *_UNITS)
    _inside(root, "systemctl", "--quiet", "mask", *_MASKED)
    _inside(root, "update-initramfs", "-u")
    with GuestRoot.open(root) as tree:
        for name in tree.names("etc/ssh"):
            if name.startswith("ssh_host_"):
                tree.remove(f"etc/ssh/{name}")
        tree.write("etc/machine-id", "", mode=0o444)


def core_image(root: Path) -> tuple[bytes, bytes]:
    """Return GRUB's boot sector and its core, made by the tree's own GRUB."""
    modules = (
        "biosdisk",
        "part_msdos",
        "ext2",
        "linux",
        "normal",
        "search_label",
        "search",
        "boot",
    )
    prefix = "(hd0,msdos1)/boot/grub"
    target = "/boot/grub/core.img"
    _inside(
        root, "grub-mkimage", "-O", "i386-pc", "-o", target, "-p", prefix,
        "-c", "/boot/grub/embedded.cfg", *modules,
    )  # fmt: skip
    with GuestRoot.open(root) as tree:
        core = tree.read("boot/grub/core.img")
        sector = tree.read("usr/lib/grub/i386-pc/boot.img")
    if len(sector) != 512:
        raise TemplateError("the boot sector of GRUB is not one")
    return sector, core


def _settings(tree: GuestRoot) -> None:
    tree.write("usr/sbin/pyvz-guest", _GUEST.replace("@NAME@", FW_CFG), mode=0o755)
    tree.write("etc/systemd/system/pyvz-guest.service", _UNIT, mode=0o644)
    tree.mkdir("etc/udev/rules.d")
    tree.write("etc/udev/rules.d/60-pyvz-plugged.rules", _RULES, mode=0o644)
    tree.mkdir("boot/grub")
    tree.write("boot/grub/embedded.cfg", _GRUB, mode=0o644)
    tree.write("etc/fstab", "LABEL=root / ext4 defaults,noatime 0 1\n", mode=0o644)
    tree.write("etc/hostname", "localhost\n", mode=0o644)
    tree.write("etc/initramfs-tools/conf.d/pyvz", "MODULES=list\nCOMPRESS=zstd\n", mode=0o644)
    tree.write("etc/initramfs-tools/modules", "\n".join((*MODULES, "")), mode=0o644)


def _inside(root: Path, *argv: str) -> None:
    """Run a program of the tree in it, as the packages' own scripts were run."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    base.run_inside(base.CONTAINED, ["chroot", os.fspath(root), *argv], env=env, timeout=600.0)
