"""Interfaces of the node that are inside a container (NETDEV).

The kernel gives a real card back to the node when the container's namespace ends, and destroys a
virtual one (a VLAN, say) together with it (default_device_exit_net, net/core/dev.c).  So the
namespace of a container with such interfaces is held, as a mount on <run>/network/<uuid>.ns, until
they have been taken back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pyvz.errors import CommandFailed, NetworkError
from pyvz.linux import mount, run
from pyvz.linux.netlink import Link
from pyvz.linux.rtnetlink import Requests


def check(name: str, link: Link | None, instance: str) -> None:
    """Raise NetworkError when a container cannot have this interface of the node."""
    if link is None:
        raise NetworkError(f"There is no network interface {name} on the node")
    if link.loopback or link.kind == "bridge":
        raise NetworkError(f"The interface {name} cannot be moved into a container")
    if link.master:
        raise NetworkError(f"The interface {name} is part of a bridge or bond")
    if link.alias.startswith(f"{instance}:"):
        raise NetworkError(f"The interface {name} belongs to a container or virtual network")


def hold(path: Path, namespace: int) -> None:
    """Keep a namespace that somebody gave a descriptor of; idempotent."""
    if mount.is_mount_point(path):
        return
    path.touch(mode=0o600)
    mount.bind(Path(f"/proc/self/fd/{namespace}"), path)


def take(names: Iterable[str], namespace: int, outside: Requests) -> None:
    """Move interfaces of the node into a namespace; NetworkError names one that cannot be."""
    found = outside.links(names)
    for name in names:
        if name not in found:
            raise NetworkError(f"There is no network interface {name} on the node")
        outside.move(found[name], namespace)
    outside.send()


def give_back(names: Iterable[str], inside: Requests) -> None:
    """Move them back out of a container that runs."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for link in inside.links(names).values():
            inside.move(link, own)
        inside.send()
    finally:
        os.close(own)


def release(path: Path, names: Iterable[str]) -> None:
    """Give back what is in a namespace that is held, and let it go; idempotent.

    Nobody runs in there any more, so nobody is asked: a program that may enter it moves them.
    """
    if not path.exists():
        return
    if mount.is_mount_point(path):
        for name in names:
            with suppress(CommandFailed):  # it is not there
                run.run(
                    [
                        "nsenter",
                        f"--net={path}",
                        "ip",
                        "link",
                        "set",
                        name,
                        "netns",
                        str(os.getpid()),
                    ]
                )
        mount.umount(path)
    path.unlink(missing_ok=True)
