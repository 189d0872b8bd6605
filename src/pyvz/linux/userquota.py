"""Quota of the users and groups in a file system on a device, switched on with its mount.

xfs keeps it in its metadata, by mount options.  ext4 has it as a feature of the file system, with
hidden files that are in its journal; tune2fs counts what is there when it is switched on.  The
limits are set by setquota(8) on the node, with the numbers that users have inside.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final

from pyvz.errors import CommandFailed, MountError, VZError
from pyvz.linux import filesystem, loopdevice, run

_OPTIONS: Final = {"xfs": ("uquota", "gquota"), "ext4": ("usrquota", "grpquota")}
_RO_COMPAT: Final = 1024 + 100  # s_feature_ro_compat of ext4
_QUOTA_FEATURE: Final = 0x100
_TIMEOUT: Final = 3600.0  # tune2fs reads every inode


def mount_options(kind: str) -> tuple[str, ...]:
    """Return the mount options with which limits are kept."""
    return _OPTIONS[kind]


def prepare(device: Path, kind: str, *, on: bool) -> None:
    """Give an unmounted, clean file system what its quota needs, or take it away with all limits.

    Raises CommandFailed.
    """
    if kind != "ext4" or _has_feature(device) == on:
        return
    run.run(["tune2fs", "-O", "quota" if on else "^quota", device], timeout=_TIMEOUT)


def _has_feature(device: Path) -> bool:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = os.pread(fd, 4, _RO_COMPAT)
    finally:
        os.close(fd)
    return bool(int.from_bytes(raw, "little") & _QUOTA_FEATURE)


def missing(kind: str) -> str:
    """Return why this kernel keeps no quota on that file system, "" when it does: it is tried."""
    with tempfile.TemporaryDirectory(prefix="pyvz-quota-") as directory:
        image = Path(directory) / "image"
        with image.open("wb") as file:
            file.truncate(filesystem.MINIMUM[kind] * 2)
        try:
            with loopdevice.attached(image, 0, image.stat().st_size) as loop:
                filesystem.make(loop.device, kind)
                prepare(loop.device, kind, on=True)
                options = mount_options(kind)
                os.close(filesystem.mount_detached(loop.device, kind, options=options))
        except MountError:
            return f"this kernel has no quota for {kind}"
        except (CommandFailed, OSError) as error:
            return str(error)
        finally:
            with contextlib.suppress(VZError):
                for loop in loopdevice.find(image):
                    backing = loopdevice.backing_of(loop.minor)
                    if backing is not None:
                        loopdevice.wait_gone(loop.minor, backing)
    return ""
