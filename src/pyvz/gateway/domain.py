"""Environments as libvirt's clients see them: domains, with a number while they run, and a state.

Clients take a numeric word for a number before a name, and a container of OpenVZ is often called
101.  So a running environment with a numeric name has that number, and every other one a number
that no name reaches: 2^30 plus the process id of its init (reference/libvirt-rpc.md, 5.1).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from pyvz.errors import EnvironmentNotFound
from pyvz.gateway import failure
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import Packed, codec, pack
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.operations.fields import ALIVE
from pyvz.operations.node import Node, StatusReader
from pyvz.operations.roster import Known
from pyvz.store.state import RunState

OFF: Final = -1
_FIRST: Final = 1 << 30
_KEY: Final = "key"

RUNNING, PAUSED, SHUTDOWN, SHUTOFF, CRASHED = 1, 3, 4, 5, 6

# State and reason as numbers of the protocol.
STATES: Final = {
    Status.RUNNING: (RUNNING, 1),
    Status.STARTING: (RUNNING, 1),
    Status.PAUSED: (PAUSED, 1),
    Status.STOPPING: (SHUTDOWN, 1),
    Status.SUSPENDED: (SHUTOFF, 5),
}
_OFF_STATE: Final = (SHUTOFF, 0)


class Domain(NamedTuple):
    """One environment at one moment."""

    env: Environment
    config: Config
    status: Status
    number: int
    memo: dict[Any, Any]  # what was derived from these values

    @property
    def running(self) -> bool:
        """Whether it has a number."""
        return self.number != OFF

    @property
    def state(self) -> tuple[int, int]:
        """Its state and the reason, as clients know them."""
        return STATES.get(self.status, _OFF_STATE)

    @property
    def starts_with_node(self) -> bool:
        """Whether it is started when the node is."""
        return self.config.boot.onboot in {"yes", "auto"}

    @property
    def key(self) -> dict[str, Any]:
        """The structure `domain` of the protocol."""
        return key(self.env, self.number)

    @property
    def packed_key(self) -> Packed:
        """The same as bytes."""
        found: Packed | None = self.memo.get(_KEY)
        if found is None:
            found = self.memo[_KEY] = Packed(pack(codec("domain"), self.key))
        return found


def key(env: Environment, number: int) -> dict[str, Any]:
    """Return the structure `domain` of the protocol."""
    return {"name": env.name, "uuid": env.uuid, "id": number}


def all_domains(node: Node) -> list[Domain]:
    """Return every environment of the node."""
    statuses = StatusReader(node)
    return [
        _domain(node, env, config, statuses.knowing(env, problem).of(env))
        for env, config, problem in node.registry.snapshot()
    ]


def find(node: Node, dom: dict[str, Any]) -> Domain:
    """Return the environment that a client names; raises Failure (42) when it is gone."""
    return lookup(node, dom["uuid"])


def find_running(node: Node, dom: dict[str, Any]) -> Domain:
    """Return the environment that a client names; raises Failure (42, 55) when it does not run."""
    found = find(node, dom)
    if not found.running:
        raise Failure(failure.OPERATION_INVALID, f"Domain is not running: {found.env.name}")
    return found


def lookup(node: Node, ref: str) -> Domain:
    """Return the environment with that UUID or name; raises Failure (42)."""
    try:
        env = node.registry.resolve(ref)
    except EnvironmentNotFound as error:
        raise missing(error) from error
    return _domain(node, env, node.registry.peek(env), node.status(env))


def missing(error: EnvironmentNotFound) -> Failure:
    """Return what a client is told when there is no such environment."""
    return Failure(failure.NO_DOMAIN, f"Domain not found: {error.message}")


def seen(known: Known) -> Domain:
    """Return the domain that the roster knows."""
    found: Domain | None = known.memo.get(Domain)
    if found is None:
        number = _number(known.env, known.pid) if known.status in ALIVE else OFF
        found = Domain(known.env, known.config, known.status, number, {})
        known.memo[Domain] = found
    return found


def is_machine(found: Domain) -> bool:
    """Whether it is a virtual machine."""
    return found.env.kind == Kind.VM


def check_machine(found: Domain, instead: str) -> None:
    """Raise Failure (84), which says what holds INSTEAD, for a container."""
    if not is_machine(found):
        text = f"{found.env.name} is a container: {instead}"
        raise Failure(failure.OPERATION_UNSUPPORTED, text)


def os_type(env: Environment) -> str:
    """Return "exe" for a container, "hvm" for a virtual machine."""
    return "hvm" if env.kind == Kind.VM else "exe"


def _domain(node: Node, env: Environment, config: Config, status: Status) -> Domain:
    number = OFF
    if status in ALIVE:
        state = RunState.load(node.paths, env.uuid)
        number = _number(env, state.pid if state is not None else 0)
    return Domain(env, config, status, number, {})


def _number(env: Environment, pid: int) -> int:
    if env.name.isascii() and env.name.isdigit() and 0 < int(env.name) < _FIRST:
        return int(env.name)
    return _FIRST + pid
