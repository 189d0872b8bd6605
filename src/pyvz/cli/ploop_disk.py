"""ploop: the commands for disks and images."""

from __future__ import annotations

import os
import sys

from pyvz.cli import ploop_pipe
from pyvz.cli.ploop_size import SECTOR, disk, size_option
from pyvz.errors import BadValue, StorageError, Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

FORMATS = "raw|expanded|preallocated"
CLUSTER_SECTORS = 2048
BROKEN = 11  # SYSEXIT_PLOOPFMT: libploop.h
DAMAGED = 41  # SYSEXIT_FSCK

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "init": (
        ("-s", "SIZE", "in sectors of 512 bytes, or with the suffix K, M, G, T"),
        ("-f", FORMATS, "preallocated and expanded: the same, thin by holes; raw: no header"),
        ("-t", "none|ext4|xfs", "the file system to make (default: ext4)"),
        ("-L", "LABEL", "label of the file system"),
        ("-v", "1|2", "version of the format (only 2 is made)"),
        ("-b", "SECTORS", "size of a cluster (only 2048)"),
        ("-B", "BYTES", "the block of the file system: 1024, 2048, 4096 (default)"),
        ("-p,--partition", "", "in a partition, as OpenVZ does"),
        ("-P", "", "without a partition, which is what is done anyway"),
        ("-n,--nolazy", "", "ext4: write all its tables now"),
        ("-S,--sparse", "", "accepted, no effect: images are sparse"),
        ("-k", "KEY", "encryption: not supported"),
        ("-T", "ploop", "accepted: the kind of image"),
    ),
    "mount": (
        ("-m", "DIR", "mount there; without it the disk is only attached"),
        ("-r", "", "read-only"),
        ("-u", "UUID|base", "a snapshot, read-only"),
        ("-F", "", "check the file system before"),
        ("-f", FORMATS, "raw: an image without a header; the others tell themselves"),
        ("-b", "SECTORS", "accepted, no effect: an image tells the size of its clusters"),
        ("-d", "DEVICE", "not supported: the kernel picks the device"),
        ("-o", "OPTION,...", "mount options: of the mount (noatime, ...) or the file system"),
        ("-t", "FSTYPE", "what must be in it: ext4, xfs"),
        ("-n", "", "accepted, no effect"),
        ("-c", "COMPONENT", "accepted, no effect"),
    ),
    "umount": (
        ("-d", "DEVICE", "the disk that is attached there"),
        ("-m", "DIR", "the disk that is mounted there"),
        ("-c", "NAME", "the temporary snapshots of the disk, which are deleted"),
    ),
    "resize": (
        ("-s", "SIZE", "in sectors of 512 bytes, or with the suffix K, M, G, T"),
        ("-b", "", "accepted, no effect: there is no balloon"),
        ("-o", "", "accepted, no effect: growing is done online where it is mounted"),
        ("-p", "PID", "accepted, no effect"),
    ),
    "info": (
        ("-s", "", "size and format"),
        ("-b", "", "accepted, no effect"),
        ("-d", "", "device and mount points"),
    ),
    "list": (("-a", "", "accepted, no effect"), ("-f", "", "accepted, no effect")),
    "check": (
        ("-u,--uuid", "UUID", "up to this snapshot"),
        ("-f,--force", "", "repair what costs no data"),
        ("-F,--hard-force", "", "the same"),
        ("-c,--check", "", "accepted: always done"),
        ("-r,--ro", "", "change nothing"),
        ("-s,--silent", "", "report only errors"),
        ("-d,--drop-inuse", "", "take the mark of an image that was not closed cleanly away"),
        ("-R,--raw", "", "the file is a raw image"),
        ("-b,--blocksize", "SECTORS", "accepted, no effect"),
        ("-S,--repair-sparse", "", "accepted, no effect: holes are wanted here"),
        ("-D,--defrag", "", "accepted, no effect"),
    ),
    "fscheck": (),
    "convert": (
        ("-f", FORMATS, "preallocated: what runs here; expanded: thin, for OpenVZ; raw"),
        ("-v", "1|2", "thin, in this version of the format"),
    ),
    "copy": (
        ("-s", "DISK|FILE|DEVICE", "what to copy"),
        ("-d", "FILE", "the new image"),
        ("-f", FORMATS, "its form (default: preallocated)"),
        ("-o", "FD", "send the disk, mounted or not, to this descriptor (default: 1)"),
        ("-i", "FD", "receive the new image from this descriptor (default: 0)"),
        ("-F", "COMMAND", "not supported: what is sent is of one moment"),
    ),
    "grow": (
        ("-s", "SIZE", "in sectors of 512 bytes, or with the suffix K, M, G, T"),
        ("-d", "DEVICE", "the disk that is attached there"),
        ("-f", FORMATS, "raw: an image without a header; the others tell themselves"),
    ),
    "balloon": (
        ("--automount", "", "accepted: always done"),
        ("--to-free", "SIZE", "accepted, no effect: everything that is free"),
        ("--min-block", "SIZE", "accepted, no effect"),
        ("--defrag", "", "accepted, no effect"),
        ("--stat", "", "accepted, no effect"),
        ("-s", "SIZE", "not supported: there is no balloon"),
        ("-m", "DIR", "accepted, no effect"),
        ("-f", "", "accepted, no effect"),
        ("-d", "DEVICE", "accepted, no effect"),
    ),
    "restore-descriptor": (
        ("-f", "raw|expanded", "what the image is (default: expanded, any ploop image)"),
        ("-b", "SECTORS", "cluster size noted for a raw image"),
    ),
    "replace": (
        ("-i", "FILE", "the new image, in the directory of the disk"),
        ("-u", "UUID", "whose image it replaces"),
        ("-l", "LEVEL", "the same by its distance from the base"),
        ("-o", "FILE", "the same by its file"),
        ("-k,--keep-name", "", "the new file gets the name of the old one"),
        ("-f", "FORMAT", "accepted, no effect"),
        ("--read-write", "", "accepted, no effect"),
    ),
}


def init(args: Arguments, server: Server) -> int:
    """Make an image."""
    size = size_option(args)
    if args.has("k"):
        raise Unsupported("Encrypted images are not supported")
    if args.value("v", "2") != "2":
        raise Unsupported(
            "Images are made in version 2 of the format",
            hint="Export one in version 1: ploop convert -v 1 DiskDescriptor.xml",
        )
    if args.number("b", CLUSTER_SECTORS) != CLUSTER_SECTORS:
        raise Unsupported(f"Images are made with clusters of {CLUSTER_SECTORS} sectors")
    fstype = args.value("t", "ext4")
    if fstype not in ("none", "ext4", "xfs"):
        raise BadValue(f"Incorrect file system type specified: {fstype}")
    server.run(
        "Image.Init",
        path=disk(args, "An image"),
        size=size,
        format=_format(args, "preallocated"),
        fstype=None if fstype == "none" else fstype,
        label=args.value("L", ""),
        partition=args.has("partition"),
        block=_block(args),
        lazy=not args.has("nolazy"),
    )
    return 0


def _block(args: Arguments) -> int:
    block = args.number("B", 4096)
    if block not in (1024, 2048, 4096):
        raise BadValue(f"Incorrect block size of the file system specified: {block}")
    return block


def _format(args: Arguments, default: str) -> str:
    found = args.value("f") or default
    if found not in ("raw", "ploop1", "expanded", "preallocated"):
        raise BadValue(f"Incorrect format specified: {found}")
    return found


def mount(args: Arguments, server: Server) -> int:
    """Attach, and mount."""
    if args.has("d"):
        raise Unsupported(
            "A device cannot be chosen", hint="The kernel does it: the answer says which it is."
        )
    if args.value("f", "ploop1") not in (*FORMATS.split("|"), "ploop1"):
        raise BadValue(f"Incorrect format specified: {args.value('f')}")
    *below, top = args.words or [""]
    args.words[:] = [top] if top else []
    target = args.value("m")
    words = [word for word in (args.value("o") or "").split(",") if word]
    readonly = args.has("r") or "ro" in words
    found = server.change(
        "Image.Mount",
        path=disk(args),
        target=os.path.abspath(target) if target is not None else None,
        readonly=readonly,
        uuid=args.value("u"),
        fsck=args.has("F"),
        options=words,
        fstype=args.value("t", ""),
        below=[os.path.abspath(each) for each in below],
        raw=args.value("f") == "raw",
    )
    mode = "ro" if readonly or args.has("u") else "rw"
    sys.stdout.write(f"Adding delta dev={found['device']} img={found['image']} ({mode})\n")
    if found["target"]:
        sys.stdout.write(f"Mounting {found['device']} at {found['target']}\n")
    return 0


def umount(args: Arguments, server: Server) -> int:
    """Unmount and detach."""
    device, target = args.value("d") or "", args.value("m")
    if not (device or target or args.words):
        raise UsageError("What to unmount is not specified")
    args.no_more_words(0 if device or target else 1)
    if args.has("c"):
        found = server.change("Image.EndTemporary", path=disk(args))
    else:
        found = server.change(
            "Image.Umount",
            path=os.path.abspath(args.words[0]) if args.words else "",
            device=device,
            target=os.path.realpath(target) if target else "",
        )
    sys.stdout.write(f"Unmounting device {found['device']}\n")
    return 0


def resize(args: Arguments, server: Server) -> int:
    """Resize a disk."""
    server.run("Image.Resize", path=disk(args), size=size_option(args))
    return 0


def grow(args: Arguments, server: Server) -> int:
    """Make an image larger."""
    size, device = size_option(args), args.value("d")
    if device is not None:
        args.no_more_words()
        path = os.path.dirname(_image_of(device, server))
    else:
        path = disk(args, "An image or DiskDescriptor.xml")
    if path.endswith(".xml") or os.path.isdir(path):
        server.run("Image.Resize", path=path, size=size, filesystem=False)
    else:
        server.change("Image.Grow", path=path, size=size, raw=_format(args, "expanded") == "raw")
    return 0


def info(args: Arguments, server: Server) -> int:
    """Show facts."""
    path = disk(args)
    if not args.has("s") and not args.has("d"):
        space = server.ask("Image.Usage", path=path)["space"]
        rows = (
            ("resource", "Size", "Used"),
            ("1k-blocks", space["size"] >> 10, space["used"] >> 10),
            ("inodes", space["inodes"], space["inodes_used"]),
        )
        for row in rows:
            sys.stdout.write("{:>11} {:>14} {:>14}\n".format(*row))
        return 0
    facts = server.ask("Image.Info", path=path)["facts"]
    if args.has("s"):
        sys.stdout.write(
            f"size:\t\t{facts['size'] // SECTOR}\n"
            f"blocksize:\t{facts['blocksize'] // SECTOR}\n"
            f"fmt_version:\t{facts['version']}\n"
        )
    if args.has("d"):
        if not facts["device"]:
            raise StorageError(f"{path} is not attached")
        sys.stdout.write(f"device:\t\t{facts['device']}\npartition:\t{facts['device']}\n")
    return 0


def list(args: Arguments, server: Server) -> int:
    """List attached images."""
    args.no_more_words()
    for row in server.ask("Image.List")["attached"]:
        sys.stdout.write(f"{row['device']}\t{row['image']}")
        sys.stdout.write(f" {row['target']}\n" if row["target"] else "\n")
    return 0


def check(args: Arguments, server: Server) -> int:
    """Check images; the exit code tells."""
    repair = args.has("force") or args.has("hard-force") or args.has("drop-inuse")
    reports = server.run(
        "Image.Check",
        path=disk(args, "An image or DiskDescriptor.xml"),
        repair=repair and not args.has("ro"),
        raw=args.has("raw"),
        uuid=args.value("uuid"),
    )["reports"]
    broken = False
    for report in reports:
        broken |= bool(report["errors"])
        _tell(report, silent=args.has("silent"))
    return BROKEN if broken else 0


def _tell(report: dict[str, Any], *, silent: bool) -> None:
    for text in report["errors"]:
        sys.stderr.write(f"{report['file']}: {text}\n")
    if silent:
        return
    for text in report["leaks"]:
        sys.stdout.write(f"{report['file']}: {text}; repair it with -f\n")
    for text in report["repaired"]:
        sys.stdout.write(f"{report['file']}: repaired: {text}\n")
    if report["in_use"] and not report["repaired"]:
        sys.stdout.write(f"{report['file']}: it was not closed cleanly\n")
    if not report["errors"]:
        sys.stdout.write(f"{report['file']}: no errors\n")


def fscheck(args: Arguments, server: Server) -> int:
    """Check a file system."""
    whole = server.run("Image.FsCheck", path=disk(args))["whole"]
    if not whole:
        sys.stderr.write("The file system is damaged and was not repaired\n")
    return 0 if whole else DAMAGED


def convert(args: Arguments, server: Server) -> int:
    """Convert a disk."""
    version = args.value("v")
    if args.has("f") == (version is not None):
        raise UsageError("Either a format (-f) or a version (-v) must be specified")
    if version not in (None, "1", "2"):
        raise BadValue(f"Invalid -v argument: {version}")
    found = server.run(
        "Image.Convert",
        path=disk(args),
        format=_format(args, "expanded") if args.has("f") else None,
        version=int(version) if version else None,
    )
    _print_checksums(found)
    return 0


def _print_checksums(found: dict[str, Any]) -> None:
    for image in found["images"]:
        sys.stdout.write(f"{image['file']}: content sha256 {image['sha256']}\n")


def copy(args: Arguments, server: Server) -> int:
    """Copy a disk."""
    source, target = args.value("s"), args.value("d")
    args.no_more_words()
    if args.has("F"):
        raise Unsupported(
            "A program that stops the writers is not run: the disk is frozen for a moment instead"
        )
    if source is not None and target is None:
        return _send(args, source, server)
    if source is None and target is not None:
        return _receive(args, target)
    if source is None or target is None or args.has("o") or args.has("i"):
        raise UsageError("Source (-s) or target (-d) must be specified, or both without -o and -i")
    if source.startswith("/dev/"):
        source = _image_of(source, server)
    found = server.run(
        "Image.Copy",
        path=os.path.abspath(source),
        target=os.path.abspath(target),
        format=_format(args, "preallocated"),
    )
    _print_checksums(found)
    return 0


def _send(args: Arguments, source: str, server: Server) -> int:
    """Send a disk to a pipe or socket."""
    out = _descriptor(args, "o", 1)
    if args.has("f"):
        raise UsageError("An image is sent as it is: -f is for copies into a file")
    if os.isatty(out):
        raise UsageError("An image is not written to a terminal", hint="Give -d FILE, or a pipe.")
    if source.startswith("/dev/"):
        source = os.path.dirname(_image_of(source, server))
    reply = server.connection.call_fds("Image.Open", path=os.path.abspath(source))
    try:
        ploop_pipe.send(reply.fds[0], out)
    except OSError as error:
        raise _not_copied(error) from error
    finally:
        os.close(reply.fds[0])
    return 0


def _receive(args: Arguments, target: str) -> int:
    """Make an image of what comes from a pipe or socket."""
    if args.has("f"):
        raise UsageError("An image is received as it is: -f is for copies of a disk")
    try:
        ploop_pipe.receive(_descriptor(args, "i", 0), os.path.abspath(target))
    except OSError as error:
        raise _not_copied(error) from error
    return 0


def _descriptor(args: Arguments, option: str, default: int) -> int:
    number = args.number(option, default)
    try:
        os.fstat(number)
    except OSError:
        raise UsageError(f"Invalid fd {number}: it is not open") from None
    return number


def _not_copied(error: OSError) -> StorageError:
    where = f"{error.filename}: " if error.filename else ""
    return StorageError(f"The image could not be copied: {where}{error.strerror}")


def _image_of(device: str, server: Server) -> str:
    for row in server.ask("Image.List")["attached"]:
        if row["device"] == device:
            return str(row["image"])
    raise BadValue(f"No image is attached as {device}")


def balloon(args: Arguments, server: Server) -> int:
    """Give free space back; there is no balloon to show or change."""
    if not args.words:
        raise UsageError("What to do is not specified")
    action = args.words.pop(0)
    if action == "discard":
        freed = server.run("Image.Discard", path=disk(args))["size"]
        sys.stdout.write(f"{freed >> 20} MB have been freed\n")
        return 0
    if action in ("show", "status", "check", "repair", "complete", "clear"):
        server.ask("Image.Info", path=disk(args))
        sys.stdout.write("There is no balloon: free space is given back by discard\n")
        return 0
    raise Unsupported(
        f"balloon {action} is not supported",
        hint="There is no balloon: use ploop resize, or ploop balloon discard.",
    )


def restore_descriptor(args: Arguments, server: Server) -> int:
    """Write a new descriptor."""
    if len(args.words) != 2:
        raise UsageError("A directory and an image in it must be specified")
    directory, image = args.words
    server.change(
        "Image.RestoreDescriptor",
        directory=os.path.abspath(directory),
        image_file=os.path.abspath(image),
        format=_format(args, "expanded"),
        blocksize=args.number("b", 0) * SECTOR,
    )
    return 0


def replace(args: Arguments, server: Server) -> int:
    """Replace an image."""
    path, image = disk(args), args.value("i")
    if image is None:
        raise UsageError("The new image is not specified (-i)")
    if len([each for each in ("u", "l", "o") if args.has(each)]) != 1:
        raise UsageError("One of -u, -l, -o must be specified")
    server.change(
        "Image.Replace",
        path=path,
        image_file=os.path.abspath(image),
        uuid=args.value("u") or _shot(args, path, server),
        keep_name=args.has("keep-name"),
    )
    return 0


def _shot(args: Arguments, path: str, server: Server) -> str:
    """Return the shot that -l or -o names."""
    shots = server.ask("Image.Snapshots", path=path)["snapshots"]
    if args.has("o"):
        name = os.path.basename(args.value("o") or "")
        found = [row["uuid"] for row in shots if row["fname"] == name]
    else:
        top = next(row["uuid"] for row in shots if row["current"])
        line = server.ask("Image.Snapshots", path=path, uuid=top)["snapshots"][::-1]
        found = [row["uuid"] for row in line][args.number("l", 0) :][:1]
    if not found:
        raise BadValue("The disk has no such image")
    return str(found[0])
