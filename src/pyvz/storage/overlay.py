r"""overlay: one read-only tree per template, shared, and what the container changed (layout 102).

    <pool>/.templates/<checksum>/tree/    a template, unpacked once
    <pool>/.templates/<checksum>/user     each container's `template` is a hard link to it
    <pool>/.templates/<checksum>.new/     being unpacked; removed by the next one
    <pool>/.templates/.lock               held while a template is made, taken or removed

    <home>/.ve.layout -> 102
    <home>/overlay/upper/                 what the container wrote, ids as it sees them
    <home>/overlay/work/                  of the kernel
    <home>/overlay/template               its text is the path of the template
    <home>/overlay.snapshots/{guid}/      upper/ as it was; it shares its blocks where the pool can
    <home>/overlay.new/  overlay.gone/    being created or cloned; being removed
    <home>/overlay.sending/  overlay.receiving/    layers go to, or come from, another node

<pool> is the directory that holds the home.  The number of links of `user` says how many containers
stand on a template, also after they were moved by a rename or died in the middle; one that nobody
uses stays until another one is unpacked, or the pool is given up (`release`).

While a container runs, its layers are idmapped (linux/overlay.py): the node sees the files of
its root with the owners that the node has for them, and can write to them only from inside.
Such a disk has no size, and `df` inside shows the pool.  The first write to a file of the template
copies it whole.  A snapshot is a copy of upper/, taken while nobody writes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyvz.errors import Busy, MountError, PrivateMissing, StorageError, Unsupported
from pyvz.linux import archive, features, file, mount, overlay, syscall
from pyvz.model.task import Progress
from pyvz.storage import base, overlaysend, tree
from pyvz.storage.kept import Kept

TEMPLATES = ".templates"
_EMPTY = "empty"  # the template of a disk that was made without an archive
_LOCK_TIMEOUT = 1800.0  # seconds that one waits for another who unpacks the same template
_CHUNK = 1 << 20
_SPECIAL = frozenset(",:\\")


class Driver(tree.Directory):
    """See `pyvz.storage.base.StorageDriver`."""

    name = "overlay"
    layout = 102
    folder = "overlay"
    mode = 0o700

    def capabilities(self, place: Path) -> base.Capabilities:
        """Snapshots and clones copy the changes; they share blocks where the place can."""
        shares = bool(features.reflink_at(place))
        return base.Capabilities(
            snapshot=True, snapshot_halts=True, linked_clone=shares, streams=True
        )

    def prepare(self, place: Path, options: Mapping[str, str]) -> None:
        """Make sure that the file system of `place` can carry an overlay; raises Unsupported."""
        del options
        probe = place / f".probe-{os.getpid()}"
        for name in ("lower", "upper", "work", "target"):
            (probe / name).mkdir(parents=True)
        try:
            data = _data(probe / "lower", probe / "upper", probe / "work")
            mount.mount("overlay", probe / "target", "overlay", data=data)
            mount.umount(probe / "target")
        except MountError as error:
            kind = mount.holding_mount(place).fstype
            raise Unsupported(
                f"{place} is on {kind}, which cannot carry an overlay", details=error.message
            ) from error
        finally:
            file.remove_tree(probe)

    def release(self, place: Path) -> None:
        """Remove the templates that no container uses any more."""
        if (place / TEMPLATES).is_dir():
            with _locked(place) as templates:
                _sweep(templates)
                if [entry.name for entry in templates.iterdir()] == [".lock"]:
                    (templates / ".lock").unlink()
                    templates.rmdir()

    def present(self, home: Path) -> bool:
        """Whether the changes of a container are there."""
        upper = home / "overlay/upper"
        return upper.is_dir() and not (home / "overlay").is_symlink() and not upper.is_symlink()

    def fill(self, home: Path, new: Path, source: Path | None, progress: Progress) -> None:
        """Take the template of `source`, unpacked where nobody did yet, and begin on top of it."""
        with _locked(home.parent, progress) as templates:
            template = _unpacked(templates, source, progress)
            _stand_on(template, new)
        (new / "work").mkdir()
        (new / "upper").mkdir()
        _copy_root(template / "tree", new / "upper")

    def copy(self, home: Path, new_home: Path, new: Path, progress: Progress) -> None:
        """Copy the changes and snapshots; the template is shared, or copied if it is elsewhere."""
        _check_unmounted(home)
        with _locked(new_home.parent, progress) as templates:
            _stand_on(_brought(_template_of(home), templates, progress), new)
        (new / "work").mkdir()
        file.copy_tree(home / "overlay/upper", new / "upper", progress)
        _kept(new_home).take_from(
            _kept(home), lambda old, kept: file.copy_tree(old, kept, progress)
        )

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Mount the changes over their template, without device files."""
        self.check_present(home)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        source = os.fspath((home / "overlay").resolve())
        there = mount.mount_at(target)
        if there is not None:
            if (there.fstype, there.source) != ("overlay", source):
                raise MountError(f"Something else is mounted on {target}")
            tree.check_mode(target, readonly=readonly)
            return
        lower = _template_of(home) / "tree"
        data = _data(lower, home / "overlay/upper", home / "overlay/work")
        flags = syscall.MS_NODEV | (syscall.MS_RDONLY if readonly else 0)
        mount.mount(source, target, "overlay", flags=flags, data=data)

    def umount(self, home: Path, target: Path) -> None:
        """Unmount; nothing stands behind it."""
        mount.umount(target)
        overlay.clean(home / "overlay")

    def linked_clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Share the template and the blocks of what was changed."""
        if not features.reflink_at(new_home):
            raise self._cannot("share blocks there", new_home)
        base.check_same_file_system(home, new_home)
        self.clone(home, new_home, progress)

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename the changes away, then remove them; leftovers of interrupted steps go too."""
        if self.present(home):
            _check_unmounted(home)
            overlay.clean(home / "overlay")
            base.check_unmounted(home)
            progress.check()
            file.remove_tree(home / "overlay.gone")
            (home / "overlay").rename(home / "overlay.gone")
        file.remove_tree(home / "overlay.gone")
        file.remove_tree(home / "overlay.new")
        overlaysend.forget(home)
        _kept(home).remove()
        tree.unmark(home, self.layout)

    # -- Extras

    def snapshot(self, home: Path, guid: str, *, disk: str = base.ROOT_DISK) -> None:
        """Copy the changes; the caller sees to it that nobody writes (`snapshot_halts`)."""
        del disk
        self.check_present(home)
        _kept(home).make(guid, lambda new: _copied(home / "overlay/upper", new))

    def switch(self, home: Path, guid: str, *, disk: str = base.ROOT_DISK) -> None:
        """Build the disk anew with a copy of the snapshot, and exchange the two in one step."""
        del disk
        self.check_present(home)
        source = _kept(home).get(guid)
        _check_unmounted(home)
        new = tree.empty(home / "overlay.new", self.mode)
        try:
            _stand_on(_template_of(home), new)
            (new / "work").mkdir()
            _copied(source, new / "upper")
            syscall.exchange(new, home / "overlay")
            file.fsync_directory(home)
        finally:
            file.remove_tree(new)

    def delete_snapshot(self, home: Path, guid: str, *, disk: str = base.ROOT_DISK) -> None:
        """Remove the copy."""
        del disk
        snapshot = os.fspath(_kept(home).get(guid).resolve()) if self.present(home) else ""
        if any((e.fstype, e.source) == ("overlay", snapshot) for e in mount.mounts()):
            raise Busy(f"The snapshot {guid} is mounted", hint="Unmount it first.")
        _kept(home).delete(guid)

    def mount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = base.ROOT_DISK
    ) -> None:
        """Mount the copy over the template, both as layers that nobody writes to."""
        del disk
        upper = _kept(home).get(guid).resolve()
        tree.check_free(target)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        lower = (_template_of(home) / "tree").resolve()
        flags = syscall.MS_NODEV | syscall.MS_RDONLY
        data = f"lowerdir={_plain(upper)}:{_plain(lower)}"
        mount.mount(upper, target, "overlay", flags=flags, data=data)

    def umount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = base.ROOT_DISK
    ) -> None:
        """Unmount; nothing stands behind it."""
        del home, guid, disk
        mount.umount(target)

    @contextlib.contextmanager
    def send_streams(self, home: Path) -> Iterator[overlaysend.Source]:
        """Layer by layer."""
        self.check_present(home)
        overlaysend.forget(home)
        try:
            with overlaysend.Source(home, _template_of(home), _kept(home).all()) as source:
                yield source
        finally:
            overlaysend.forget(home)

    @contextlib.contextmanager
    def receive_streams(self, home: Path, size: int | None) -> Iterator[overlaysend.Sink]:
        """Give the layers that have come their places; a template that is known stays."""
        if size is not None:
            raise self.no_size(home)
        overlaysend.forget(home)
        try:
            with self.built(home) as new:
                yield (sink := overlaysend.Sink(home))
                layers = sink.layers()
                with _locked(home.parent) as templates:
                    _stand_on(_received(templates, layers), new)
                (new / "work").mkdir()
                layers.upper.rename(new / "upper")
                for each in layers.kept:
                    _kept(home).make(each.name, each.rename)
        except BaseException:
            _kept(home).remove()
            raise
        finally:
            overlaysend.forget(home)

    def forget_streams(self, home: Path) -> None:
        """Remove what tar had seen."""
        overlaysend.forget(home)

    def no_size(self, place: Path) -> Unsupported:
        """Return why: the pool is one for all."""
        del place
        return Unsupported(
            "A container on an overlay cannot be given a disk size",
            details="df inside shows the space of the whole pool.",
            hint="Leave the size out, or use a layout with a disk image.",
        )


def _kept(home: Path) -> Kept:
    return Kept(home / "overlay.snapshots", file.remove_tree)


def _copied(source: Path, target: Path) -> None:
    """Copy a tree and have it on the disk."""
    file.copy_tree(source, target)
    file.syncfs(target)


@contextlib.contextmanager
def _locked(pool: Path, progress: Progress | None = None) -> Iterator[Path]:
    """Hold the lock of the pool's templates and yield their directory."""
    templates = pool / TEMPLATES
    templates.mkdir(mode=0o700, exist_ok=True)
    if progress is not None:
        progress.check()
    with file.flock(templates / ".lock", timeout=_LOCK_TIMEOUT):
        yield templates


def _unpacked(templates: Path, source: Path | None, progress: Progress) -> Path:
    """Return the template of an archive, unpacked now when it is not there yet."""
    made = templates / (_EMPTY if source is None else _checksum(source, progress))
    if made.exists():
        return made
    new = tree.empty(made.with_name(made.name + ".new"), 0o700)
    try:
        (new / "tree").mkdir(mode=0o755)
        if source is not None:
            archive.unpack(source, new / "tree", progress)
        _finish(new, made)
    except BaseException:
        file.remove_tree(new)
        raise
    _sweep(templates, keep=made)
    return made


def _brought(template: Path, templates: Path, progress: Progress) -> Path:
    """Return the template as containers in the pool of `templates` can use it."""
    made = templates / template.name
    if made.exists():
        return made
    if template.stat().st_dev == templates.stat().st_dev:
        return template
    new = tree.empty(made.with_name(made.name + ".new"), 0o700)
    try:
        file.copy_tree(template / "tree", new / "tree", progress)
        _finish(new, made)
    except BaseException:
        file.remove_tree(new)
        raise
    return made


def _received(templates: Path, layers: overlaysend.Layers) -> Path:
    """Return the template that has come, or the one of that name that was there before."""
    made = templates / layers.template
    if made.exists():
        return made
    new = tree.empty(made.with_name(made.name + ".new"), 0o700)
    try:
        layers.lower.rename(new / "tree")
        _finish(new, made)
    except BaseException:
        file.remove_tree(new)
        raise
    return made


def _finish(new: Path, made: Path) -> None:
    """Flush a new template and give it its name: containers will trust it for years."""
    (new / "user").write_text(f"{made.resolve()}\n")
    file.syncfs(new)
    new.rename(made)
    file.fsync_directory(made.parent)


def _sweep(templates: Path, *, keep: Path | None = None) -> None:
    """Remove what no container stands on, and what was left half unpacked; the lock is held."""
    for entry in templates.iterdir():
        if entry.name.startswith(".") or entry == keep:
            continue
        with contextlib.suppress(FileNotFoundError):
            if (entry / "user").stat().st_nlink > 1:
                continue
        file.remove_tree(entry)


def _checksum(source: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            progress.check()
    return digest.hexdigest()[:32]


def _stand_on(template: Path, new: Path) -> None:
    """Count `new` among those that use the template."""
    try:
        os.link(template / "user", new / "template")
    except OSError as error:
        if error.errno == errno.EXDEV:  # two mounts of one file system
            raise StorageError(f"{template} and {new} are different mounts") from error
        raise


def _template_of(home: Path) -> Path:
    """Return the template on which the container of `home` stands; raises PrivateMissing."""
    link = home / "overlay/template"
    try:
        written = Path(file.read_text_limited(link).strip())
        for candidate in (home.parent / TEMPLATES / written.name, written):
            with contextlib.suppress(FileNotFoundError):
                if (candidate / "user").samefile(link):
                    return candidate
    except FileNotFoundError:
        written = Path(TEMPLATES)
    raise PrivateMissing(
        f"The template on which the container in {home} stands is not there",
        details=f"{written} is missing, or is another one.",
    )


def _check_unmounted(home: Path) -> None:
    source = os.fspath((home / "overlay").resolve())
    places = [e.target for e in mount.mounts() if (e.fstype, e.source) == ("overlay", source)]
    if places:
        raise Busy(f"{home} is in use: it is mounted", details="\n".join(places[:10]))


def _data(lower: Path, upper: Path, work: Path) -> str:
    return overlay.data(*(_plain(path.resolve()) for path in (lower, upper, work)))


def _plain(place: Path) -> Path:
    if _SPECIAL & set(os.fspath(place)):
        raise Unsupported(f"An overlay cannot be in {place}: it has a comma, colon or backslash")
    return place


def _copy_root(source: Path, upper: Path) -> None:
    """Give the upper root directory the owner, mode and time of the template's."""
    status = source.stat()
    os.chown(upper, status.st_uid, status.st_gid)
    upper.chmod(status.st_mode & 0o7777)
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))
