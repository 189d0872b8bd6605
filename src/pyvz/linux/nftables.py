"""nftables: one atomic batch of libnftables-json(5), by the library, else by `nft -j -f -`.

The batch is a value; either all of it is in force afterwards or nothing of it.  Whoever makes one
names tables of ours only, so no rule of anybody else can be touched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyvz.errors import CommandFailed, NetworkError, Unsupported
from pyvz.linux import libnftables, run

Command = dict[str, Any]

_TIMEOUT = 30.0


class Table(NamedTuple):
    """A table by its address family ("netdev", "inet", "bridge") and name."""

    family: str
    name: str

    def add(self) -> Command:
        """Make it; nothing happens when it is there."""
        return {"add": {"table": self._asdict()}}

    def create(self) -> Command:
        """Make it; the batch fails when it is there."""
        return {"create": {"table": self._asdict()}}

    def drop(self) -> list[Command]:
        """Remove it with everything in it, whether it is there or not."""
        return [self.add(), {"delete": {"table": self._asdict()}}]

    def chain(self, name: str, hook: str, priority: int, **more: Any) -> Command:  # noqa: ANN401
        """Make a base chain of filters; more: dev, policy, type."""
        made = {"type": "filter", "hook": hook, "prio": priority, **more}
        return {"add": {"chain": self._in(name=name, **made)}}

    def plain_chain(self, name: str) -> Command:
        """Make a chain that rules jump to; nothing happens when it is there."""
        return {"add": {"chain": self._in(name=name)}}

    def flush(self, chain: str) -> Command:
        """Take every rule out of a chain."""
        return {"flush": {"chain": self._in(name=chain)}}

    def rule(self, chain: str, *expressions: Command) -> Command:
        """Append a rule."""
        return {"add": {"rule": self._in(chain=chain, expr=list(expressions))}}

    def first(self, chain: str, *expressions: Command) -> Command:
        """Put a rule before all others."""
        return {"insert": {"rule": self._in(chain=chain, expr=list(expressions))}}

    def set(self, name: str, kind: str | list[str]) -> Command:
        """Make a named set; nothing happens when it is there."""
        return {"add": {"set": self._in(name=name, type=kind)}}

    def elements(self, name: str, elements: Sequence[Any]) -> list[Command]:
        """Put elements into a set; those that are in it stay."""
        if not elements:
            return []
        return [{"add": {"element": self._in(name=name, elem=list(elements))}}]

    def without(self, name: str, elements: Sequence[Any]) -> list[Command]:
        """Take elements out of a set, whether they are in it or not."""
        if not elements:
            return []
        gone = {"delete": {"element": self._in(name=name, elem=list(elements))}}
        return [*self.elements(name, elements), gone]

    def _in(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"family": self.family, "table": self.name, **more}


def match(left: Any, right: Any, op: str = "==") -> Command:  # noqa: ANN401
    """Return the expression that compares."""
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> Command:
    """Return a field of a header: field("ip", "saddr")."""
    return {"payload": {"protocol": protocol, "field": name}}


def raw(base: str, offset: int, length: int) -> Command:
    """Return bits of the packet, from "ll", "nh" or "th"."""
    return {"payload": {"base": base, "offset": offset, "len": length}}


def meta(key: str) -> Command:
    """Return what the kernel knows of the packet: meta("iifname")."""
    return {"meta": {"key": key}}


ACCEPT: Command = {"accept": None}
DROP: Command = {"drop": None}


def apply(batch: Sequence[Command]) -> None:
    """Put a batch in force, all or nothing; raises NetworkError, Unsupported (no nft), Timeout."""
    if not batch:
        return
    text = json.dumps({"nftables": list(batch)})
    try:
        _nft(text)
    except CommandFailed as error:
        raise NetworkError("The kernel refused the packet filter", details=error.details) from error


def listed(table: Table) -> dict[str, Any]:
    """Return what is in a table, as libnftables-json(5) has it; {} when there is no such table."""
    return _list({"table": table._asdict()})


def chains(family: str) -> dict[str, Any]:
    """Return the chains of a family ("ip", "ip6", "inet") without their rules; {} for none."""
    return _list({"chains": {"family": family}})


def _list(wanted: Command) -> dict[str, Any]:
    try:
        found = json.loads(_nft(json.dumps({"nftables": [{"list": wanted}]})))
    except (CommandFailed, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _nft(commands: str) -> str:
    answer = libnftables.run(commands)
    if answer is None:
        return _program(commands)
    if answer.code:
        raise CommandFailed("nftables", details=answer.error)
    return answer.output


def _program(commands: str) -> str:
    if shutil.which("nft", path=run.ENVIRONMENT["PATH"]) is None:
        raise Unsupported(
            "Neither libnftables nor the program nft is installed",
            hint="Install the package nftables.",
        )
    return run.run(["nft", "-j", "-f", "-"], input=commands, timeout=_TIMEOUT).stdout
