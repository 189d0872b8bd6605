"""The network cards of virtual machines."""

from __future__ import annotations

from contextlib import ExitStack

from pyvz.errors import Unsupported
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions
from pyvz.vm.spec import NicSpec


def open_all(
    node: Node, env: Environment, config: Config, opened: ExitStack
) -> tuple[NicSpec, ...]:
    """Make the tap devices of a machine that starts; raises Unsupported."""
    _ = node, opened
    if config.network.interfaces or config.network.ip:
        raise Unsupported(f"{env.name}: network cards of virtual machines are not supported yet")
    return ()


def connected(node: Node, env: Environment, config: Config) -> None:
    """Put addresses, filters and rates in force for taps that QEMU holds."""
    _ = node, env, config


def with_addresses(node: Node, given: GivenOptions) -> GivenOptions:
    """Return the options with every `--ipadd auto` replaced by a free address of the node."""
    _ = node
    return given


def settled(node: Node, env: Environment, config: Config) -> Config:
    """Return CONFIG with hardware addresses for cards that have none."""
    _ = node, env
    return config


def check(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    """Reserve what NEW wants; raises AddressInUse, NetworkError."""
    _ = node, undo
    if new.network.interfaces != old.network.interfaces or new.network.ip != old.network.ip:
        raise Unsupported(f"{env.name}: network cards of virtual machines are not supported yet")


def change(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    """Bring the cards of a running machine from OLD to NEW."""
    _ = node, env, old, new, undo


def clean(node: Node, uuid: str) -> None:
    """Take away what a machine that does not run has on the node; idempotent."""
    _ = node, uuid
