"""What an environment is promised, and whether the node can keep it (pure).

The sum of all guarantees, with what the node needs for each machine, may not exceed what the node
has for environments (vcmmd: _check_guarantees).  A policy that allows no overcommitment keeps the
sum of the limits below that as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvz.errors import BadValue, GuaranteeRefused
from pyvz.memory.policy.base import Policy
from pyvz.model.config import Config
from pyvz.model.config_limits import memory_of, swap_of
from pyvz.model.memory import NodeMemory, Reservation, VeType
from pyvz.units import MIB, UNLIMITED


def of_config(name: str, kind: VeType, config: Config, node: NodeMemory) -> Reservation:
    """Return what CONFIG asks for; the guarantee in percent counts of the effective limit.

    Raises BadValue for a guarantee in bytes above the limit.
    """
    limit = memory_of(config)
    effective = min(limit, node.usable)
    percent, size = config.memory.guarantee, config.memory.guarantee_bytes
    guarantee = effective * percent // 100 if percent is not None else size or 0
    made = Reservation(
        name,
        kind,
        guarantee=guarantee,
        auto=percent is None and size is None,
        limit=limit,
        swap=swap_of(config),
    )
    return check(made)


def check(entry: Reservation) -> Reservation:
    """Return ENTRY when its figures fit each other; raise BadValue."""
    if min(entry.guarantee, entry.limit, entry.swap, entry.cache, entry.cpunum) < 0:
        raise BadValue("an amount of memory cannot be negative")
    if entry.guarantee > entry.limit:
        raise BadValue(
            f"the guarantee of {mib(entry.guarantee)} is above the limit of {mib(entry.limit)}",
            hint="Raise the limit, or lower the guarantee.",
        )
    return entry


def settled(entry: Reservation, policy: Policy, node: NodeMemory) -> Reservation:
    """Return ENTRY with the guarantee that POLICY gives to one that leaves it to the policy."""
    if not entry.auto:
        return entry
    share = policy.auto_guarantee(entry.type)
    return entry._replace(guarantee=min(entry.limit, node.usable) * share // 100)


def admit(
    wanted: Reservation,
    others: Iterable[Reservation],
    node: NodeMemory,
    policy: Policy,
    *,
    label: str = "",
) -> None:
    """Raise GuaranteeRefused, with the figures, when the node cannot keep WANTED beside OTHERS.

    label: what to call it in the message.
    """
    others = [each for each in others if each.name != wanted.name]
    label = label or wanted.name
    promised = sum(each.minimum for each in others)
    left = max(node.usable - promised, 0)
    if wanted.minimum > left:
        raise GuaranteeRefused(
            f"{label} wants a guarantee of {mib(wanted.minimum)}, but the node can promise only "
            f"{mib(left)} more",
            details=_figures(node, promised, len(others)),
            hint="Lower a guarantee (--memguarantee), or stop an environment that has one.",
        )
    if not policy.overcommit and wanted.type is not VeType.SRVC:
        _check_overcommit(wanted, others, node, policy, label)


def _check_overcommit(
    wanted: Reservation,
    others: Iterable[Reservation],
    node: NodeMemory,
    policy: Policy,
    label: str,
) -> None:
    given = sum(min(each.limit, node.usable) for each in others if each.type is not VeType.SRVC)
    left = max(node.usable - given, 0)
    if wanted.limit > left:
        may = "any amount of memory" if wanted.limit >= UNLIMITED else mib(wanted.limit)
        raise GuaranteeRefused(
            f"{label} may use {may}, but the policy {policy.name} allows no overcommitment and "
            f"only {mib(left)} are left",
            details=f"for environments: {mib(node.usable)}, limits of those that run: {mib(given)}",
            hint="Lower its --memsize, or choose another policy (vcmmdctl set-policy density).",
        )


def _figures(node: NodeMemory, promised: int, count: int) -> str:
    kept = node.total - node.usable
    return (
        f"memory of the node: {mib(node.total)}, kept for the node itself: {mib(kept)}, "
        f"promised to {count} others: {mib(promised)}"
    )


def mib(size: int) -> str:
    """Return a size for people."""
    return "unlimited" if size >= UNLIMITED else f"{-(-size // MIB)} MiB"
