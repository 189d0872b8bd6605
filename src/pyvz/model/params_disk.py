"""Parameters of disks (config.md sections 3.1 and 3.4)."""

from __future__ import annotations

from typing import Any

from pyvz.model.grammar import COUNT, KIBIBYTES, Integer, Pair, Text, YesNo
from pyvz.model.grammar_disk import DiskEntry, Disks, change_disk
from pyvz.model.grammar_list import BindMounts
from pyvz.model.param import CONTAINERS, MACHINES, Option, Param, both, tools
from pyvz.units import KIB, MIB, UNLIMITED, parse_size

_BINDS = BindMounts()
_NO_QUOTA_GRACE = "the file system keeps its own grace time"


def _diskspace(text: str) -> Pair:
    """Read prlctl's ``--diskspace`` and ``--size``: MiB or with a suffix."""
    size = parse_size(text, default_unit=MIB)
    kib = UNLIMITED if size >= UNLIMITED else -(-size // KIB)
    return Pair(kib, kib)


def _size_in_mib(disk: DiskEntry, text: str) -> DiskEntry:
    return change_disk(disk, "size", str(_diskspace(text).limit))


def _disk_option(
    name: str,
    metavar: str,
    about: str,
    key: str = "",
    **more: Any,  # noqa: ANN401
) -> Option:
    """Return an option that changes the disk named before it."""

    def merge(disk: DiskEntry, text: str) -> DiskEntry:
        return change_disk(disk, key or name, text)

    return Option(name, metavar, about, merge=merge, scope="disk", **more)


def _switch(name: str, word: str, about: str, **more: Any) -> Option:  # noqa: ANN401
    """Return a flag that enables or disables the disk named before it."""

    def merge(disk: DiskEntry, _text: str) -> DiskEntry:
        return change_disk(disk, "enabled", word)

    return Option(name, "", about, merge=merge, scope="disk", **more)


_SCOPED_COMMON = (
    _disk_option("image", "PATH", "image of the disk"),
    _disk_option("device", "PATH", "block device of the node"),
    _disk_option("mnt", "PATH", "where it is mounted inside", kinds=CONTAINERS),
    _disk_option("autocompact", "yes|no", "give unused space back"),
    _switch("disable", "no", "do not attach it"),
)
SPACE = Param(
    "disk.space",
    "DISKSPACE",
    KIBIBYTES,
    None,
    "size of the root disk in KiB",
    tools(
        prlctl=(Option("diskspace", "SIZE", "size of the root disk in MiB", parse=_diskspace),),
        vzctl=(Option("diskspace", "SIZE[:SIZE]", "size of the root disk in KiB"),),
    ),
    live=True,
    vzlist="diskspace",
)
INODES = Param(
    "disk.inodes",
    "DISKINODES",
    COUNT,
    None,
    "number of files",
    tools(vzctl=(Option("diskinodes", "N[:N]", "number of files"),)),
    live=True,
    vzlist="diskinodes",
)
QUOTA_TIME = Param(
    "disk.quota_time",
    "QUOTATIME",
    Integer(0),
    0,
    "grace time of the quota in seconds",
    tools(vzctl=(Option("quotatime", "SECONDS", "grace time", ignored=_NO_QUOTA_GRACE),)),
)
QUOTA_USERS = Param(
    "disk.quota_users",
    "QUOTAUGIDLIMIT",
    Integer(0, 2**31),
    0,
    "quota per user inside; 0: off",
    both(Option("quotaugidlimit", "N", "quota per user inside; 0: off", kinds=CONTAINERS)),
)
QUOTA = Param("disk.quota", "DISK_QUOTA", YesNo(), default=True, help="keep a quota at all")
JOURNALED_QUOTA = Param(
    "disk.journaled_quota",
    "JOURNALED_QUOTA",
    YesNo(),
    None,
    help="journaled quota inside",
    options=tools(vzctl=(Option("jquota", "on|off", "journaled quota inside"),)),
)
DISKS = Param(
    "disk.disks",
    "DISK",
    Disks(),
    (),
    "disks beside an unchanged root disk",
    tools(
        prlctl=(
            Option(
                "size",
                "SIZE",
                "size of the disk in MiB or with a suffix",
                merge=_size_in_mib,
                scope="disk",
                short="s",
            ),
            *_SCOPED_COMMON,
            _switch("enable", "yes", "attach it", short="e"),
        ),
        vzctl=(
            _disk_option("size", "SIZE", "size of the disk in KiB or with a suffix"),
            *_SCOPED_COMMON,
            _switch("enable", "yes", "attach it"),
            _disk_option("device-uuid", "UUID", "UUID of the disk", "uuid"),
            _disk_option("storage-url", "URL", "where the disk is stored", "storage_url"),
            _disk_option("mount_opts", "OPTIONS", "mount options", "mnt_opts"),
        ),
    ),
    local=True,
)
BINDMOUNT = Param(
    "disk.bindmounts",
    "BINDMOUNT",
    BindMounts(),
    (),
    "directories of the node that appear inside",
    both(
        Option(
            "bindmount_add",
            "[SRC:]DST[,OPTIONS]",
            "show a directory of the node inside (nosuid, noexec, nodev, ro)",
            merge=_BINDS.add,
            repeat=True,
            kinds=CONTAINERS,
        ),
        Option(
            "bindmount_del",
            "DST|all",
            "take a bind mount away",
            merge=_BINDS.remove,
            repeat=True,
            kinds=CONTAINERS,
        ),
    ),
)
LAYOUT = Param(
    "disk.layout",
    "VE_LAYOUT",
    Text(),
    "",
    "how the root disk is kept: simfs, ploop, ...",
    aliases=("VELAYOUT",),
    vzlist="layout",
)
FSTYPE = Param("disk.fs_type", "VEFSTYPE", Text(), "", "file system inside an image", local=True)
IMAGE_FORMAT = Param("disk.image_format", "VEIMAGEFORMAT", Text(), "", "format of an image")
AUTOCOMPACT = Param(
    "disk.autocompact",
    "AUTOCOMPACT",
    YesNo(),
    default=True,
    help="give unused space of images back",
    options=both(Option("autocompact", "on|off", "give unused space of images back")),
    live=True,
)
ROOT_DISK = Param(
    "disk.root_disk", "ROOT_DISK", YesNo(), default=True, help="no: there is no root disk"
)
NOATIME = Param(
    "disk.noatime",
    "NOATIME",
    YesNo(),
    default=False,
    help="do not keep access times",
    options=tools(vzctl=(Option("noatime", "yes|no", "do not keep access times"),)),
)
MOUNT_OPTS = Param(
    "disk.mount_options",
    "MOUNT_OPTS",
    Text(),
    "",
    "mount options of the root disk",
    tools(vzctl=(Option("mount_opts", "OPTIONS", "mount options of the root disk"),)),
)
MACHINE_ONLY = (
    Option("serial", "TEXT", "serial number of the disk", scope="disk", kinds=MACHINES),
    Option("iface", "ide|scsi|virtio", "how it is attached", scope="disk", kinds=MACHINES),
    Option("subtype", "virtio-scsi|hyperv", "controller", scope="disk", kinds=MACHINES),
    Option("passthr", "", "pass SCSI commands through", scope="disk", kinds=MACHINES),
    Option("position", "N", "slot of the controller", scope="disk", kinds=MACHINES),
)
