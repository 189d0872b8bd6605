"""A thin ploop disk goes over into a qcow2 disk that stands on it, and back into one that runs.

Going over copies nothing and commits by the one name `qcow2`.  Going back writes every state that
only the qcow2 image has as an image of the ploop disk; the descriptor commits them, and then the
qcow2 disk, which says the same until it is removed, goes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from pyvz.errors import InvalidState, Unsupported
from pyvz.image import convert as conversion
from pyvz.image import delta, qcow2
from pyvz.image import disk as format_
from pyvz.image.disk import PREALLOCATED, RAW, Descriptor, normal_guid
from pyvz.linux import file
from pyvz.model.task import Progress
from pyvz.storage import ploopdisk, qcow2stack
from pyvz.storage.qcow2disk import OPTIONS, Disk
from pyvz.storage.qcow2stack import Stack


def put_above(new: Disk, stack: Stack) -> None:
    """Make in the directory of NEW an empty image above a ploop disk that nobody has open.

    Raises StorageError (an image is damaged), Busy, Unsupported.
    """
    below = ploopdisk.Disk(stack.directory)
    others = [path.name for path in stack.directory.parent.glob("*/" + format_.NAME)]
    if len(others) > 1:
        raise Unsupported("A container with several disks cannot be run where it lies")
    with below.locked():
        below.check_idle()
        qcow2stack.make_whole(stack)
        with stack.opened() as found:
            size = found.size
        new.tool("create", "-q", "-f", "qcow2", "-o", OPTIONS, new.image, str(size))
        stack.write(new.path)
        new.begin_unclean()  # whether its file system was unmounted on its OpenVZ node, who knows
        nodes, _ = new.below()  # refuses paths that are too long before anything is named
        del nodes


def write_down(disk: Disk, stack: Stack, progress: Progress) -> None:
    """Bring all states of the idle DISK into the ploop disk below, which then has them all."""
    below = ploopdisk.Disk(stack.directory)
    with below.locked():
        d = below.descriptor()
        if d.mode == RAW and len(d.images) > 1:
            raise Unsupported(
                "A raw disk with snapshots below a qcow2 image cannot be brought back",
                hint="Delete the snapshots, or copy the files into a new container.",
            )
        below.sweep()
        new = _with_top(d, stack)
        with disk.served() as raw:
            # It may have grown since; snapshots keep the size that they had.
            new = replace(new, disk_size=max(new.disk_size, raw.stat().st_size))
            _copy(raw, stack.directory / new.file_of(new.top), progress)
        for each in qcow2.require(disk.image).snapshots:
            if any(each.name == shot.guid for shot in new.snapshots):
                continue  # by one that was killed before the qcow2 disk was put away
            name = f"{format_.BASE_FILE}.{normal_guid(each.name)}"
            with disk.view(each.name).served() as raw:
                _copy(raw, stack.directory / name, progress)
            new = new.with_snapshot(each.name, name)
        below.save(new)
        below.sweep()


def _with_top(d: Descriptor, stack: Stack) -> Descriptor:
    """Return the descriptor with a new file for the top, which goes on from the shot below."""
    name = f"{format_.BASE_FILE}.{{{uuid4()}}}"  # as the original names new tops
    new = d.with_file(d.top, name) if stack.guid == d.top else d.switched(stack.guid, name)
    return replace(new, mode=PREALLOCATED) if len(new.images) == 1 else new


def _copy(raw: Path, target: Path, progress: Progress) -> None:
    target.unlink(missing_ok=True)
    with delta.stack([raw], raw_base=True) as source:
        conversion.to_identity(source, target, progress)


def refuse_below(directory: Path) -> None:
    """Raise InvalidState for a ploop disk that lies below a qcow2 image: it must not change."""
    above = directory.parent / "qcow2"
    stack = qcow2stack.read(above) if (above / qcow2stack.FILE).exists() else None
    if stack is not None and file_is(stack.directory, directory):
        raise InvalidState(
            f"{directory} lies below {above} and must not be touched",
            hint="Bring it back first: prlctl convert CT --layout ploop.",
        )


def file_is(one: Path, two: Path) -> bool:
    """Whether both are the same directory; False when one is not there."""
    try:
        return one.samefile(two)
    except FileNotFoundError:
        return False


def clone_below(stack: Stack, new_home: Path, progress: Progress) -> None:
    """Copy the ploop disk; its name comes last."""
    new = new_home / f"{stack.directory.name}.new"
    file.remove_tree(new)
    new.mkdir(mode=0o700)
    d = stack.descriptor()
    for image in d.images:
        ploopdisk.copy(stack.directory / image.file, new / image.file, progress)
    ploopdisk.Disk(new).save(d)
    templates = stack.directory / "templates"
    if templates.is_dir():
        file.copy_tree(templates, new / "templates", progress)
    new.rename(new_home / stack.directory.name)
    link = new_home / "templates"
    if not link.is_symlink() and not link.exists():
        link.symlink_to(f"{stack.directory.name}/templates")
