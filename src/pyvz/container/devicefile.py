"""Device files for containers whose root is not the node's.

In a user namespace nobody can make a device node, so those of DEVNODES are shown by a bind mount.
The node's own file is good for that as long as it is open to everybody (/dev/net/tun, /dev/fuse);
one that is the node's root's alone (/dev/ppp, disks), or is not there as its module is not loaded
yet, is made here for the container: of its root, and of nobody else.

    /dev/.<instance>/<uuid>/net-tun         /dev, because most other places are mounted nodev
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from pyvz.container.devices import DeviceNode
from pyvz.container.spec import ContainerSpec
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

_NEEDED = {"r": stat.S_IROTH, "w": stat.S_IWOTH}


class DeviceFiles:
    """The device files of the containers of one node."""

    def __init__(self, paths: Paths) -> None:
        self._directory = Path("/dev") / f".{paths.instance}"

    def given(self, spec: ContainerSpec) -> ContainerSpec:
        """Return SPEC with a file of its own for each device that it could not open else.

        They are made; remove() takes them away.
        """
        if spec.ids is None:
            return spec
        owner = spec.ids.first
        nodes = tuple(self._given(spec.uuid, node, owner) for node in spec.device_nodes)
        return spec._replace(device_nodes=nodes)

    def remove(self, uuid: str) -> None:
        """Take the files of a container away; idempotent."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._directory / uuid)
            with suppress(OSError):  # those of others are there
                self._directory.rmdir()

    def _given(self, uuid: str, node: DeviceNode, owner: int) -> DeviceNode:
        if _open_to_all(node):
            return node
        try:
            return node._replace(source=self._made(uuid, node, owner))
        except OSError as error:  # nor may this node's root make any, perhaps
            log.warning("%s: it gets the node's own %s: %s", uuid, node.path, error)
            return node

    def _made(self, uuid: str, node: DeviceNode, owner: int) -> str:
        home = self._directory / uuid
        for directory in (self._directory, home):  # its root must find the way, and see nothing
            with suppress(FileExistsError):
                directory.mkdir(0o711)
        path = home / node.path.removeprefix("/dev/").replace("/", "-")
        kind = stat.S_IFBLK if node.kind == "b" else stat.S_IFCHR
        wanted = (kind | 0o600, os.makedev(node.major, node.minor), owner)
        with suppress(FileNotFoundError):
            found = path.lstat()
            if (found.st_mode, found.st_rdev, found.st_uid) == wanted:
                return os.fspath(path)  # a container that runs may have it mounted
            path.unlink()
        os.mknod(path, *wanted[:2])
        os.chown(path, owner, owner)
        return os.fspath(path)


def _open_to_all(node: DeviceNode) -> bool:
    try:
        found = Path(node.source or node.path).stat()
    except OSError:
        return False
    return all(found.st_mode & bit for letter, bit in _NEEDED.items() if letter in node.access)
