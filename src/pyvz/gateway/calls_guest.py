"""The inside of guests: by the agent of a machine, and by the node itself for a container.

They need the right to write, as libvirt has it: an agent works for whoever asks it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from pyvz.gateway import domain, failure, guestview, xdr
from pyvz.gateway.connection import Call, Handler, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import Typed
from pyvz.operations import innersignal, machineguest
from pyvz.operations.node import Node
from pyvz.vm import guestword

Key = dict[str, Any]

SYNC: Final = 1  # flag: from the machine's own clock
KEYS_APPEND, KEYS_REMOVE = 1, 2  # flags of the keys of ssh
MOST_KEYS: Final = 2048
_DEFAULT_WAIT: Final = 30.0
_LONGEST_WAIT: Final = 3600.0
_MOST_CPUS: Final = 4096


def inside(function: Callable[..., Values | None]) -> Handler:
    """Make a handler of FUNCTION(node, domain, **arguments) for a domain that runs."""

    @wraps(function)
    async def handle(call: Call, arguments: dict[str, Any]) -> Values | None:
        node = call.office.node
        dom = arguments.pop("dom")

        def work() -> Values | None:
            return function(node, domain.find_running(node, dom), **arguments)

        return await call.office.query(work)

    return handle


async def domain_interface_addresses(call: Call, arguments: dict[str, Any]) -> Values:
    """The addresses of a guest: those that it was given (0), has (1), or is reached by (2)."""
    node, source = call.office.node, arguments["source"]
    if source not in {guestview.LEASE, guestview.AGENT, guestview.ARP}:
        raise Failure(failure.INVALID_ARGUMENT, f"There is no source {source} of addresses")
    if source == guestview.AGENT and call.client.readonly:
        raise Failure(failure.DENIED, "The agent is not asked for read-only access")

    def look() -> list[Key]:
        found = domain.find_running(node, arguments["dom"])
        return guestview.interfaces(node, found, source)

    return {"ifaces": await call.office.query(look)}


@inside
def domain_send_process_signal(
    node: Node, found: Domain, *, pid_value: int, signum: int, **_: object
) -> None:
    """Signal a process of a container, by the number that it has inside."""
    innersignal.send(node, found.env, pid_value, signum)


@inside
def domain_get_fsinfo(node: Node, found: Domain, **_: object) -> Values:
    """The file systems that are mounted inside."""
    shown = guestview.file_systems(node, found)
    return {"info": shown, "ret": len(shown)}


@inside
def domain_get_guest_info(node: Node, found: Domain, *, types: int, **_: object) -> Values:
    """Operating system, users, time zone, name, file systems, interfaces."""
    return {"params": guestview.facts(node, found, types)}


@inside
def domain_get_time(node: Node, found: Domain, **_: object) -> Values:
    """The time inside."""
    seconds, rest = divmod(guestview.clock(node, found), 10**9)
    return {"seconds": seconds, "nseconds": rest}


@inside
def domain_set_time(node: Node, found: Domain, *, seconds: int, nseconds: int, flags: int) -> None:
    """Set the clock inside, or (1) have the guest read the machine's own."""
    domain.check_machine(found, "it has the node's clock")
    given = None if flags & SYNC else {"time": seconds * 10**9 + nseconds}
    guestview.asked(node, found, "guest-set-time", given)


@inside
def domain_fstrim(
    node: Node, found: Domain, *, mountPoint: str | None, minimum: int, **_: object
) -> None:
    """Have the guest give back blocks that it does not use."""
    domain.check_machine(found, "it is made smaller with prlctl compact")
    if mountPoint is not None:
        raise Failure(failure.INVALID_ARGUMENT, "The agent trims all file systems, or none")
    guestview.asked(node, found, "guest-fstrim", {"minimum": minimum} if minimum else None)


@inside
def domain_fsfreeze(node: Node, found: Domain, *, mountpoints: list[str], **_: object) -> Values:
    """Keep file systems still until they are thawed; returns how many there are."""
    domain.check_machine(found, "it is frozen by its snapshots and backups")
    if mountpoints:
        command, given = "guest-fsfreeze-freeze-list", {"mountpoints": mountpoints}
        return {"filesystems": _number(guestview.asked(node, found, command, given))}
    return {"filesystems": _number(guestview.asked(node, found, "guest-fsfreeze-freeze"))}


@inside
def domain_fsthaw(node: Node, found: Domain, **_: object) -> Values:
    """Let them go on; the agent knows no single one."""
    domain.check_machine(found, "it has no frozen file systems")
    return {"filesystems": _number(guestview.asked(node, found, "guest-fsfreeze-thaw"))}


@inside
def domain_authorized_ssh_keys_get(node: Node, found: Domain, *, user: str, **_: object) -> Values:
    """The keys of ssh that let somebody in as a user of the guest."""
    domain.check_machine(found, "it has its keys in its files: prlctl exec")
    answer = guestview.asked(node, found, "guest-ssh-get-authorized-keys", {"username": user})
    keys = answer.get("keys") if isinstance(answer, dict) else None
    return {"keys": [guestword.text(each) for each in keys or ()][:MOST_KEYS]}


@inside
def domain_authorized_ssh_keys_set(
    node: Node, found: Domain, *, user: str, keys: list[str], flags: int
) -> None:
    """Set them all, add some (1), or take some away (2)."""
    domain.check_machine(found, "it has its keys in its files: prlctl exec")
    words: dict[str, Any] = {"username": user, "keys": keys}
    if flags & KEYS_REMOVE:
        guestview.asked(node, found, "guest-ssh-remove-authorized-keys", words)
        return
    words["reset"] = not flags & KEYS_APPEND
    guestview.asked(node, found, "guest-ssh-add-authorized-keys", words)


@inside
def domain_get_guest_vcpus(node: Node, found: Domain, **_: object) -> Values:
    """Which processors the guest has, uses, and could leave alone."""
    domain.check_machine(found, "it has the processors that vcpucount tells")
    cpus = guestword.rows(guestview.asked(node, found, "guest-get-vcpus"))
    lists = {
        "vcpus": cpus,
        "online": [each for each in cpus if each.get("online")],
        "offlinable": [each for each in cpus if each.get("can-offline")],
    }
    return {
        "params": [
            Typed(name, xdr.STRING, ",".join(str(_cpu(each)) for each in listed))
            for name, listed in lists.items()
        ]
    }


@inside
def domain_set_guest_vcpus(
    node: Node, found: Domain, *, cpumap: str, state: int, **_: object
) -> None:
    """Have the guest use processors, or leave them alone."""
    domain.check_machine(found, "it has the processors that setvcpus gives it")
    wanted = [{"logical-id": each, "online": bool(state)} for each in _listed(cpumap)]
    done = guestview.asked(node, found, "guest-set-vcpus", {"vcpus": wanted})
    if _number(done) < len(wanted):
        raise Failure(failure.FAILED, f"The guest has changed {_number(done)} of {len(wanted)}")


@inside
def qemu_domain_agent_command(
    node: Node, found: Domain, *, cmd: str, timeout: int, **_: object
) -> Values:
    """Run a command of the agent's as it is written (JSON); timeout: seconds, -2 long, -1 usual."""
    domain.check_machine(found, "it has no guest agent")
    try:
        asked = json.loads(cmd)
        command, arguments = str(asked["execute"]), asked.get("arguments")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(failure.INVALID_ARGUMENT, "That is no command for an agent") from error
    wait = {-2: _LONGEST_WAIT, -1: _DEFAULT_WAIT}.get(timeout, float(max(1, timeout)))
    with machineguest.agent(node, found.env) as talk:
        if timeout == 0:
            talk.tell(command, arguments)
            return {"result": None}
        answer = talk.call(command, arguments, timeout=min(wait, _LONGEST_WAIT))
    return {"result": json.dumps({"return": answer})}


def _number(value: object) -> int:
    return guestword.number(value, most=(1 << 31) - 1)


def _cpu(row: object) -> int:
    return guestword.number(row.get("logical-id"), most=_MOST_CPUS) if isinstance(row, dict) else 0


def _listed(cpumap: str) -> list[int]:
    """Return the numbers in a list like "0-2,4"; raises Failure."""
    found: list[int] = []
    try:
        for part in cpumap.split(","):
            first, _, last = part.partition("-")
            low, high = int(first), int(last or first)
            if not 0 <= low <= high < _MOST_CPUS:
                raise ValueError(part)  # noqa: TRY301
            found += range(low, high + 1)
    except ValueError as error:
        raise Failure(failure.INVALID_ARGUMENT, f"'{cpumap[:80]}' is no list of CPUs") from error
    return found
