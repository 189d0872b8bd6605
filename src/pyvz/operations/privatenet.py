"""IP private networks: add, change, give up; the rules of the node follow the files.

The file is written first, and written back when the kernel refuses the rules: the other way round
there could be a wall that nobody sees.  The start of vzd puts in force what the files say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyvz.errors import AlreadyExists, VZError
from pyvz.linux import nftables
from pyvz.network import privatenet
from pyvz.operations.node import Node
from pyvz.store.privatenets import WEAK, PrivateNet, PrivateNets, parse_net


def states(node: Node) -> list[PrivateNet]:
    """Return every private network; raises ConfigError for a damaged file."""
    return PrivateNets(node.paths).all()


def add(node: Node, name: str, nets: Iterable[str], *, is_global: bool = False) -> None:
    """Make a private network; raises AlreadyExists, BadValue, NetworkError."""
    store = PrivateNets(node.paths)
    with store.locked():
        if store.exists(name):
            raise AlreadyExists(f"There is an IP private network {name} already")
        made = PrivateNet(name, tuple(dict.fromkeys(map(parse_net, nets))), is_global)
        _save(node, store, None, made)


def change(
    node: Node,
    name: str,
    added: Sequence[str],
    removed: Sequence[str],
    *,
    is_global: bool | None = None,
) -> None:
    """Change a private network; raises NotFound, BadValue, NetworkError."""
    store = PrivateNets(node.paths)
    with store.locked():
        old = store.get(name)
        gone = {*map(parse_net, removed)}
        fresh = tuple(map(parse_net, added))
        nets = tuple(dict.fromkeys((*(net for net in old.nets if net not in gone), *fresh)))
        new = PrivateNet(name, nets, old.is_global if is_global is None else is_global)
        _save(node, store, old, new)


def delete(node: Node, name: str) -> None:
    """Give a private network up; raises NotFound."""
    store = PrivateNets(node.paths)
    with store.locked():
        old = store.get(name)
        store.remove(name)
        try:
            apply(node)
        except VZError:
            store.save(old)
            raise


def apply(node: Node) -> None:
    """Put in force what the files say; raises ConfigError, NetworkError, Unsupported."""
    found = [
        privatenet.PrivateNetwork(
            each.name,
            tuple(net for net in each.nets if net != WEAK),
            weak=WEAK in each.nets,
            is_global=each.is_global,
        )
        for each in PrivateNets(node.paths).all()
    ]
    nftables.apply(privatenet.rules(node.paths.instance, found))


def bring_up(node: Node) -> None:
    """At the start of vzd: nothing is done on a node that never had private networks."""
    if (node.paths.etc / "privnets").is_dir():
        apply(node)


def _save(node: Node, store: PrivateNets, old: PrivateNet | None, new: PrivateNet) -> None:
    store.save(new)
    try:
        apply(node)
    except VZError:
        if old is None:
            store.remove(new.name)
        else:
            store.save(old)
        raise
