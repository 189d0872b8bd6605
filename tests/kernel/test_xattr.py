"""What a copy of a file keeps beside its content, from one file system to another."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import places
from homes import node_with_template, request
from pyvz.linux import archive, file, treecompare, xattr
from pyvz.model.task import NoProgress
from pyvz.operations import provision, relocate

pytestmark = pytest.mark.requires("root", "loop")

NOBODY = (1 << 32) - 1
# struct posix_acl_xattr_header and _entry (tag, permissions, id): the owner, a user, ..., others
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, NOBODY), (2, 6, 5), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY))
)
NAMES = {"system.posix_acl_access", "system.posix_acl_default", "user.one", "trusted.two"}


@contextmanager
def pools(directory: Path) -> Iterator[tuple[Path, Path]]:
    """An xfs, which shows each ACL twice, and an ext4, which lists attributes in another order."""
    with (
        places.file_system("xfs", directory / "xfs", 320 << 20) as xfs,
        places.file_system("ext4", directory / "ext4", 64 << 20) as ext4,
    ):
        yield xfs, ext4


def journal(directory: Path) -> Path:
    """A directory like systemd's /var/log/journal."""
    directory.mkdir(parents=True)
    for name in sorted(NAMES):
        os.setxattr(directory, name, ACL if "acl" in name else b"x")
    (directory / "file").write_text("x")  # inherits the default ACL
    return directory


def test_a_copy_on_another_file_system_is_equal(tmp_path: Path) -> None:
    with pools(tmp_path) as (xfs, ext4):
        there = journal(xfs / "tree/journal").parent
        assert any(name.startswith(xattr.OF_XFS) for name in os.listxattr(there / "journal"))
        copied, unpacked = ext4 / "copied", ext4 / "unpacked"
        file.copy_tree(there, copied)
        archive.pack(there, tmp_path / "a.tar", NoProgress())
        unpacked.mkdir()
        archive.unpack(tmp_path / "a.tar", unpacked, NoProgress())
        for tree in (copied, unpacked):
            assert treecompare.compare(there, tree) == treecompare.Comparison(2, "")
            assert set(os.listxattr(tree / "journal")) == NAMES
        os.removexattr(copied / "journal/file", "system.posix_acl_access")
        assert "file: extended attributes" in treecompare.compare(there, copied).difference
        there.chmod(0o700)
        assert "the directory itself: mode" in treecompare.compare(there, unpacked).difference


def test_a_container_with_acls_moves(tmp_path: Path) -> None:
    node = node_with_template(tmp_path)
    with pools(node.paths.root) as (xfs, ext4):
        env = provision.create(node, request())
        journal(env.home / "fs/var/log/journal")
        for pool in (xfs, ext4, xfs):
            env = relocate.move(node, "ct1", f"/{pool.name}")
            assert env.home.parent == pool
            assert set(xattr.names(env.home / "fs/var/log/journal")) == NAMES
        provision.delete(node, "ct1")
