"""Move an environment to another node: the side that gives.

Phases, each a function; the other side's are in immigrate.py:

    check - reserve - rounds of the disks while it runs - halt - last round - commit - clean up

Until the other node has decided to take over, whatever fails leaves the environment here as it was.
The decision is the other node's alone (migration/decision.py); a broken connection in that moment
is healed by asking.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from uuid import uuid4

from pyvz.errors import (
    BadValue,
    InDoubt,
    InvalidState,
    ProtocolError,
    Unsupported,
    VZError,
)
from pyvz.linux import file
from pyvz.migration import address as addresses
from pyvz.migration import decision, iterate
from pyvz.migration.dial import Peer, dial
from pyvz.migration.offer import HOME, Offer
from pyvz.migration.wire import SILENCE, Refused
from pyvz.model import params_net as params
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind, canonical_uuid, check_name
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import clone, departure, home, lifecycle, provision, suitable
from pyvz.operations.lifecycle import StartOptions, StopOptions
from pyvz.operations.node import Node
from pyvz.operations.outgoing import Outgoing, layout, offers
from pyvz.store.journal import Journal

log = logging.getLogger(__name__)

_DOUBT_PATIENCE: Final = 60.0  # seconds in which an unknown outcome is asked for again and again


class Request(NamedTuple):
    """What is wanted.  None: as the original's default.

    target: [user@]host[:port].  online: do not stop it.  clone: it stays here, a copy goes.
    name, uuid, private: what it is to be over there.  remove: its files here go.
    start: whether it runs afterwards as it did before.  shared: False: copy in any case.
    ignore: checks to skip.  ssh: options for ssh.  silence: seconds after which a quiet
    connection counts as broken.  compress: worth it on all but the fastest networks.
    """

    target: str
    online: bool = False
    clone: bool = False
    name: str | None = None
    uuid: str | None = None
    private: str | None = None
    remove: bool = False
    start: bool = True
    shared: bool | None = None
    ignore: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    silence: float = SILENCE
    compress: bool = True
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it for a message."""
        return self._asdict()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Request:
        """Return the request in a message; raises ProtocolError."""
        try:
            known = {name: fields[name] for name in cls._fields}
            known |= {"ignore": tuple(known["ignore"]), "ssh": ()}
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise ProtocolError("The other node asks for something unknown") from error


class Report(NamedTuple):
    """What happened.

    uuid, name, host: of the environment over there.  seconds: all of it.  still: how long it stood.
    rounds: bytes of each round of the disks.  sent: bytes on the wire.
    started: whether it runs there; problem: why not, though it should.
    """

    uuid: str
    name: str
    host: str
    seconds: float
    still: float
    rounds: tuple[int, ...]
    sent: int
    started: bool
    problem: str

    def to_json(self) -> dict[str, Any]:
        """Return it for a message."""
        return self._asdict()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Report:
        """Return the report in a message; raises ProtocolError."""
        try:
            return cls(**{name: fields[name] for name in cls._fields})
        except KeyError as error:
            raise ProtocolError("The other node does not tell what happened") from error


def migrate(node: Node, ref: str, request: Request, progress: Progress | None = None) -> Report:
    """Move an environment to another node.

    Raises ConnectionFailed, NodesDiffer, AlreadyExists, AddressInUse, NoSpace, Cancelled, ...: it
    is here, as it was.  InDoubt: see there.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    address = addresses.parse(request.target)
    with node.lease(env, "migrate"):
        provision.repair(node, env)
        _require(node, env, request)
        progress.stage(f"Connecting to {address}")
        with dial(
            address,
            home.owner_id(node),
            options=request.ssh,
            silence=request.silence,
            compress=request.compress,
        ) as peer:
            if peer.node == home.owner_id(node):
                raise BadValue(f"{address} is this node", hint="To copy it here use: prlctl clone")
            return give(node, env, peer, request, progress)


def prepare_and_give(
    node: Node, env: Environment, peer: Peer, request: Request, progress: Progress
) -> Report:
    """Check the state and give: for a node that has asked us to; the caller holds the lease."""
    provision.repair(node, env)
    _require(node, env, request)
    return give(node, env, peer, request, progress)


def give(node: Node, env: Environment, peer: Peer, request: Request, progress: Progress) -> Report:
    """Move an environment to the node at the other end; the caller holds the lease."""
    with ExitStack() as stack:
        giving = _Giving(node, env, peer, request, progress)
        stack.callback(giving.close)
        return giving.run()


def recover(node: Node) -> None:
    """Start again what was stopped for a move that failed (start of vzd)."""
    decision.prune(node.paths)
    for uuid in departure.marked(node):
        try:
            lifecycle.start(node, uuid)
        except VZError as error:
            log.warning("%s was stopped to be migrated and does not start: %s", uuid, error)
        departure.unmark(node, uuid)


def retry(node: Node) -> bool:
    """Ask again about those in doubt; whether there are any (left)."""
    left = False
    for record in Journal.all(node.paths):
        if record.verb != departure.VERB or not record.step(departure.DECIDING):
            continue
        env = home.from_data(record.uuid, record.data)
        try:
            with node.lease(env, "migrate", timeout=0.0):
                provision.repair_leftover(node, env)
        except (VZError, OSError) as error:
            log.info("%s: %s", env.name, error)
            left = True
    if departure.marked(node):
        recover(node)
    return left


def force(node: Node, ref: str, *, here: bool) -> None:
    """Decide for the other node about one in doubt: it is here, or there."""
    env = node.registry.resolve(ref)
    with node.lease(env, "migrate"):
        departure.force(node, env, here=here)
    recover(node)


class _Giving:
    """One migration as it goes on."""

    def __init__(
        self, node: Node, env: Environment, peer: Peer, request: Request, progress: Progress
    ) -> None:
        self.node, self.env, self.peer = node, env, peer
        self.request, self.progress = request, progress
        self.ident = str(uuid4())
        self.running = env.uuid in node.runtime.running()
        self.began = time.monotonic()
        self.halted_at: float | None = None
        self._journal: Journal | None = None
        self._stack = ExitStack()
        self._disks: list[Outgoing] = []
        self._rounds: list[int] = []
        self.shared = False

    def run(self) -> Report:
        """All phases."""
        try:
            self._check()
            if self.request.dry_run:
                return self._report({"started": False, "problem": ""}, 0.0)
            self._reserve()
            self._running_rounds()
            self._halt()
            self._last_round()
        except BaseException as error:
            self._back(error)
            raise
        return self._commit()

    def close(self) -> None:
        """Let go of everything that is open."""
        self._stack.close()

    # check

    def _check(self) -> None:
        self.progress.stage("Checking")
        self.offer = _offer(self.node, self.env, self.request, running=self.running)
        token = self.env.home / suitable.TOKEN
        try:
            file.write_atomic(token, self.offer.token, 0o600)
            answer = self.peer.call(
                "check", id=self.ident, offer=self.offer.to_json(), progress=self.progress
            )
        finally:
            token.unlink(missing_ok=True)
        self.shared = bool(answer.get("shared"))
        if self.shared and self.request.clone:
            raise Unsupported("A copy on shared storage is made with: prlctl clone")

    # reserve

    def _reserve(self) -> None:
        self.progress.stage("Reserving")
        self._journal = departure.begin(
            self.node,
            self.env,
            {
                "id": self.ident,
                "to": str(self.peer.address) if self.peer.address.host else "",
                "ssh": list(self.request.ssh),
                "node": self.peer.node,
                "clone": self.request.clone,
                "remove": self.request.remove,
                "shared": self.shared,
            },
        )
        self.peer.call("reserve", progress=self.progress)
        if self.shared:
            return
        for disk in self.offer.disks:
            outgoing = Outgoing(self.node, self.env, disk, self.peer, self.progress)
            self._stack.enter_context(outgoing)
            self._disks.append(outgoing)
            channel = outgoing.channel.number
            self.peer.call(
                "disk",
                name=disk.name,
                form=disk.form,
                driver=disk.driver,
                size=outgoing.size(),
                channel=channel,
                progress=self.progress,
            )

    # disks

    def _running_rounds(self) -> None:
        if not self.running or self.shared:
            return
        live = [each for each in self._disks if each.disk.form != HOME]
        while live and iterate.goes_on(self._rounds, small=iterate.SMALL_DISK):
            self._round(live, still=False)

    def _last_round(self) -> None:
        if not self.shared:
            self._round(self._disks, still=True)
            with self._told():
                for each in self._disks:
                    each.finish()
        self.peer.call("disks-done", progress=self.progress)

    def _round(self, disks: list[Outgoing], *, still: bool) -> None:
        number = len(self._rounds) + 1
        what = "last round" if still else f"round {number}"
        amount = 0
        with self._told():
            for each in disks:
                self.progress.stage(f"Copying {each.disk.name}: {what}")
                amount += each.send(still=still)
        self._rounds.append(amount)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """When the other node refuses data, raise its reason."""
        try:
            yield
        except Refused:
            self.peer.call("disks-done")
            raise

    # halt

    def _halt(self) -> None:
        self.halted_at = time.monotonic()
        if not self.running:
            return
        assert self._journal is not None  # noqa: S101  begun by _reserve
        self.progress.stage("Stopping")
        self._journal.note(departure.HALTED)
        lifecycle.halt(self.node, self.env, StopOptions(), self.progress)

    # commit

    def _commit(self) -> Report:
        """Ask the other node to take over.  From here on it alone knows whether it did."""
        journal = self._journal
        assert journal is not None  # noqa: S101  begun by _reserve
        start = self.running and self.request.start
        self.progress.stage("Committing")
        journal.note(departure.DECIDING)
        answer: dict[str, Any] = {"started": False, "problem": ""}
        try:
            answer = self.peer.call("commit", start=start)
            outcome = decision.TAKEN
        except (VZError, OSError) as error:
            outcome = self._outcome(error)
            if outcome != decision.TAKEN:
                journal.note(departure.KEPT)
                self._back(error)
                raise
            answer = {"started": False, "problem": str(error)}
        journal.note(departure.GIVEN)
        still = time.monotonic() - (self.halted_at or time.monotonic())
        report = self._report(answer, still)
        self._forward(journal)
        return report

    def _outcome(self, error: VZError | OSError) -> str:
        """Return what was decided, after something went wrong in that moment."""
        log.warning("%s: the decision is not known: %s", self.env.name, error)
        try:
            return str(self.peer.call("outcome", id=self.ident, timeout=30.0)["outcome"])
        except VZError as again:
            log.info("asking again: %s", again)
        assert self._journal is not None  # noqa: S101
        record = Journal.leftover(self.node.paths, self.env.uuid)
        assert record is not None  # noqa: S101  it is ours
        deadline = time.monotonic() + _DOUBT_PATIENCE
        while True:
            try:
                return departure.ask(self.node, record)
            except InDoubt as doubt:
                log.warning("%s", doubt)
                if time.monotonic() > deadline:
                    self._journal.leave()
                    raise
            time.sleep(1.0)

    def _forward(self, journal: Journal) -> None:
        """It is gone: clean up.  What fails here is done by `repair` later."""
        self.close()
        record = Journal.leftover(self.node.paths, self.env.uuid)
        assert record is not None  # noqa: S101  it is ours
        try:
            departure.settle(self.node, self.env, record, decision.TAKEN)
        except (VZError, OSError):
            log.exception("%s: what it left here could not be cleaned up yet", self.env.name)
            journal.leave()
            return
        journal.done()
        self.node.publish("ve-migrated", self.env, host=self.peer.host)
        try:
            self.peer.call("settled", id=self.ident, timeout=30.0)
        except VZError as error:
            log.info("%s: %s", self.env.name, error)

    def _back(self, error: BaseException) -> None:
        """Nothing was decided: the environment goes on here as it was."""
        log.info("%s stays: %s", self.env.name, error, exc_info=error)
        self.close()
        try:
            self.peer.call("abort", timeout=30.0)
        except VZError as broken:
            log.debug("the other node was not told: %s", broken)
        journal, self._journal = self._journal, None
        if journal is None:
            return
        record = Journal.leftover(self.node.paths, self.env.uuid)
        assert record is not None  # noqa: S101  it is ours
        try:
            departure.tidy(self.node, self.env)
            journal.done()
            if record.step(departure.HALTED) and self.env.uuid not in self.node.runtime.running():
                lifecycle.start_locked(self.node, self.env, StartOptions(), NoProgress())
        except (VZError, OSError):
            log.exception("%s: not all is as it was", self.env.name)
            journal.leave()

    def _report(self, answer: dict[str, Any], still: float) -> Report:
        return Report(
            uuid=self.offer.uuid,
            name=self.offer.name,
            host=self.peer.host,
            seconds=time.monotonic() - self.began,
            still=still if self.running else 0.0,
            rounds=tuple(self._rounds),
            sent=self.peer.wire.sent,
            started=bool(answer.get("started")),
            problem=str(answer.get("problem") or ""),
        )


def _require(node: Node, env: Environment, request: Request) -> None:
    """Raise unless it is in a state in which it can go."""
    if env.kind != Kind.CT:
        raise Unsupported("Virtual machines are not supported by this version")
    status = lifecycle.require(node, env, "migrate")
    if request.clone and status == Status.SUSPENDED:
        raise InvalidState(f"{env.name} is suspended: there would be two of the same memory")
    if request.clone and status != Status.STOPPED:
        raise InvalidState(f"{env.name} is {status}: a copy is made of a stopped one")
    if request.online and status == Status.RUNNING:
        raise Unsupported(
            "Migrating a running container without stopping it is not supported yet",
            hint="Without --online it is stopped for the last part only.",
        )


def _offer(node: Node, env: Environment, request: Request, *, running: bool) -> Offer:
    conf = node.registry.conf_file(env)
    uuid, name = env.uuid, env.name
    if request.clone:
        uuid = str(uuid4())
        _give_new_cards(conf)
    if request.uuid is not None:
        uuid = canonical_uuid(request.uuid) or ""
        if not uuid:
            raise BadValue(f"'{request.uuid}' is not a UUID")
    if request.name is not None:
        name = check_name(request.name)
    envid = env.envid if uuid == env.uuid and env.envid != env.uuid else uuid
    return Offer(
        uuid=uuid,
        envid=envid,
        name=name,
        conf=conf.render(),
        memory=node.runtime.usage(env.uuid).memory or 0 if running else 0,
        running=running,
        live=request.online and running,
        machine=platform.machine(),
        kernel=os.uname().release,
        cpu=suitable.cpu_flags(),
        driver=layout(env),
        disks=offers(node, env, running=running),
        place=home.spelled(node, env.home),
        token=str(uuid4()),
        private=request.private,
        shared=request.shared,
        ignore=request.ignore,
        copy=request.clone,
        checkpoint={},
    )


def _give_new_cards(conf: ConfFile) -> None:
    """Give a copy network cards of its own; the IP addresses stay, for people to change."""
    old = Config.parse(conf.values(), lenient=True)
    fresh = tuple(clone.fresh_interface(each) for each in old.network.interfaces)
    for key, value in old.changed({params.NETIF.field: fresh}).differences(old).items():
        conf.set(key, value)
