"""The interface of policies: who is protected how much, and who must give back.

A policy is a module of this folder with a class `Policy`; `load(name)` imports it by the name that
stands in vcmmd.conf, so a new policy is one new file.  It is a pure function of what it is shown
(`View`) and of what it remembers of earlier rounds; it writes nothing.  It never decides limits:
those are the owner's, and a policy that fails or is exchanged leaves them as they are.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

import pyvz.memory.policy
from pyvz.errors import PolicyNotFound
from pyvz.model.memory import NodeMemory, Protection, Reservation, Sample, VeType
from pyvz.model.vcmmdconf import ALIASES

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NOT_POLICIES = frozenset({"base", "placement"})


class NumaNode(NamedTuple):
    """One NUMA node.  cpus: its processors as a list ("0-3").  total: bytes."""

    number: int
    cpus: str
    total: int


class Ve(NamedTuple):
    """One managed VE.  before: its last sample, None in its first round.

    pinned: its owner has chosen its processors or NUMA nodes.
    """

    entry: Reservation
    now: Sample
    before: Sample | None
    given: Protection
    pinned: bool = False


class View(NamedTuple):
    """What a policy sees in one round.  seconds: since the last round."""

    node: NodeMemory
    ves: Mapping[str, Ve]
    seconds: float
    numa: tuple[NumaNode, ...] = ()


class Plan(NamedTuple):
    """What a policy wants.  VEs that are not named get the guarantee alone.

    take: bytes that a VE must give back now.
    """

    protections: Mapping[str, Protection]
    take: Mapping[str, int] = {}


class Policy(Protocol):
    """One policy.  name: as in vcmmd.conf.  overcommit: whether limits may exceed the memory."""

    name: str
    overcommit: bool

    def auto_guarantee(self, kind: VeType) -> int:
        """Return the percentage of its limit that a VE without a setting is promised."""

    def plan(self, view: View) -> Plan:
        """Return what is to be done in this round."""

    def interval(self) -> float:
        """Return the seconds until the next round."""


def load(name: str) -> Policy:
    """Return a new policy; raises PolicyNotFound naming those that there are."""
    name = ALIASES.get(name, name)
    if not _NAME.fullmatch(name) or name not in names():
        raise PolicyNotFound(
            f"there is no memory policy '{name}'", hint="Choose one of: " + ", ".join(names())
        )
    module = importlib.import_module(f"pyvz.memory.policy.{name}")
    return cast("Policy", module.Policy())


@functools.cache  # every start asks
def names() -> tuple[str, ...]:
    """Return the names of all policies."""
    found = pkgutil.iter_modules(pyvz.memory.policy.__path__)
    return tuple(sorted(each.name for each in found if each.name not in _NOT_POLICIES))
