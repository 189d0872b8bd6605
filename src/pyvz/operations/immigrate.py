"""The side of a migration that takes over: answers what the giving node asks, phase by phase.

    check        can it live here?  nothing is changed
    reserve      its id, name and addresses; a journal record; an empty home
    disk         one for each disk: rounds arrive on a channel, each in a thread of its own
    disks-done   all rounds are here and on the disk
    memory       with its memory: a round of it while it still runs there (pre-copy)
    ready        with its memory: the memory begins to arrive, the root and CRIU are waiting
    again        it could not be dumped in that moment: as before the memory
    restore      all is here: it is restored; nothing of it runs yet
    pages        it runs; all of its memory has come (post-copy)
    why          what has failed: the other node was told to send no more
    commit       the decision, then its place, registration, and start
    outcome      what was decided about a migration whose connection broke
    settled      the other node knows

When the connection ends before the decision, everything is taken away again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

from pyvz.errors import (
    ConnectionBroken,
    InternalError,
    InvalidState,
    MigrationError,
    ProtocolError,
    VZError,
)
from pyvz.linux.guestroot import GuestRoot
from pyvz.migration import decision, messages, offer
from pyvz.migration.address import Address
from pyvz.migration.dial import Peer
from pyvz.migration.messages import Message
from pyvz.migration.offer import HOME, MIRROR, Offer
from pyvz.migration.request import Request
from pyvz.migration.wire import Wire
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.operations import (
    arrival,
    clone,
    home,
    lifecycle,
    liverestore,
    machinearrival,
    migrate,
    provision,
    pulled,
    suitable,
)
from pyvz.operations.incoming import Incoming
from pyvz.operations.memoryrounds import Rounds
from pyvz.operations.node import Node
from pyvz.storage import base as storage

log = logging.getLogger(__name__)

SESSION_TIMEOUT: Final = 7 * 86400.0  # for the next question; a dead connection is seen at once


class Arriving:
    """One environment on its way in.  A context manager: what is not committed is undone."""

    def __init__(self, node: Node, wire: Wire) -> None:
        self._node = node
        self._wire = wire
        self._held = ExitStack()
        self._disks: list[Incoming] = []
        self._ident = ""
        self._offer: Offer | None = None
        self._env: Environment | None = None
        self._journal: Any = None
        self._shared = False
        self._live: liverestore.Arrival | machinearrival.Arrival | None = None
        self._machine: machinearrival.Arrival | None = None
        self._rounds: Rounds | None = None

    def __enter__(self) -> Arriving:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def check(self, message: Message) -> dict[str, Any]:
        """Look whether it can live here; remember what was offered."""
        if self._journal is not None:
            raise ProtocolError("An environment is arriving on this connection already")
        node, made = self._node, offer.parse(message["offer"])
        place = suitable.is_shared(node, made)
        self._shared = place is not None
        if place is None:
            place = suitable.new_home(node, made, made.private)
        suitable.check(node, made, place, shared=self._shared)
        if made.live and made.kind == Kind.CT:
            liverestore.check(node, made)
        for ref in {made.uuid, made.envid, made.name}:
            if home.taken(node, ref):
                raise home.taken_error(ref)
        self._ident, self._offer = message["id"], made
        self._env = offer.environment(made, place)
        return {"shared": self._shared, "home": home.spelled(node, place), "memory_rounds": True}

    def reserve(self, _: Message) -> dict[str, Any]:
        """Keep id, name, addresses; make the home."""
        made, env = self._known()
        node = self._node
        if self._journal is not None:
            raise ProtocolError("It is reserved already")
        self._held.enter_context(home.reserved(node, env.uuid, env.envid, env.name))
        self._held.enter_context(node.lease(env, "migrate"))
        provision.repair_leftover(node, env)
        if not self._shared:
            home.check_place(node, env.home)
        conf = arrival.configuration(node, env, made)
        self._journal = arrival.begin(node, env, self._ident, shared=self._shared)
        config = Config.parse(conf.values(), lenient=True)
        arrival.reserve_addresses(node, env, config)
        if made.live and env.kind == Kind.CT:
            arrival.settle_in(node, env, conf, self._journal, shared=self._shared)
        return {}

    def disk(self, message: Message) -> dict[str, Any]:
        """Begin to receive a disk."""
        made, env = self._begun()
        name = message["name"]
        disk = next((each for each in made.disks if each.name == name), None)
        if disk is None or any(each.disk.name == name for each in self._disks):
            raise ProtocolError("The other node sends a disk that it has not offered")
        if made.live and disk.form != HOME:
            for each in self._disks:
                if each.disk.form == HOME:
                    each.whole()  # scripts, which the mounting of a disk runs
        channel = self._wire.channel(message["channel"])
        disk = disk._replace(size=message["size"])
        incoming = Incoming(self._node, env, disk, channel, live=made.live and env.kind == Kind.CT)
        self._disks.append(incoming)
        incoming.start()
        return {}

    def disks_done(self, _: Message) -> dict[str, Any]:
        """Wait until every disk is whole and durable; raises what went wrong with one."""
        made, _env = self._begun()
        for each in self._disks:
            each.finish()
        if not self._shared and {each.disk.name for each in self._disks} != {
            each.name for each in made.disks if each.form != MIRROR
        }:
            raise ProtocolError("The other node has not sent every disk")
        return {}

    def prepare(self, message: Message) -> dict[str, Any]:
        """Have QEMU of a virtual machine wait for its memory and disks."""
        made, env = self._begun()
        if env.kind != Kind.VM:
            raise ProtocolError("A container is not prepared like a virtual machine")
        self.disks_done(message)
        node = self._node
        conf = arrival.configuration(node, env, made)
        arrival.settle_in(node, env, conf, self._journal, shared=self._shared)
        config = Config.parse(conf.values(), lenient=True)
        what = (node, env, config, self._journal, self._wire)
        self._live = self._machine = machinearrival.Arrival(*what)
        self._machine.prepare(message["frame"], made, shared=self._shared)
        return {}

    def stream(self, message: Message) -> dict[str, Any]:
        """Take a channel that leads to a machine's QEMU: to a disk, or to its memory."""
        if self._machine is None:
            raise ProtocolError("Nothing was prepared for a virtual machine")
        channel = self._wire.channel(message["channel"])
        self._machine.stream(message["name"], channel)
        return {}

    def memory(self, message: Message) -> dict[str, Any]:
        """Begin to receive a round of its memory, while it still runs there."""
        made, env = self._begun()
        if self._live is not None or not made.live or env.kind != Kind.CT:
            raise ProtocolError("No rounds of memory are due")
        if self._rounds is None:
            self._rounds = Rounds(self._node, env, message["size"])
        self._rounds.begin(message["round"], self._wire.channel(message["channel"]))
        return {}

    def ready(self, message: Message) -> dict[str, Any]:
        """Take the memory as it comes; have all else ready: root, network, CRIU."""
        _made, env = self._begun()
        node = self._node
        if self._live is not None:
            raise ProtocolError("The memory is arriving already")
        if not self._shared:
            provision.furnish_missing(env.home)
        what = (node, env, node.registry.config(env), self._journal, self._rounds)
        self._live = liverestore.Arrival(*what)
        channel = self._wire.channel(message["channel"])
        number = message["pages"]
        pages = None if number is None else self._wire.channel(number)
        if pages is not None:
            self._journal.note(arrival.LAZY)
        self._live.prepare(message["frame"], channel, pages, memory_used=message["memory"])
        if not self._shared and all(each.early for each in self._disks):
            self._live.root_is_here()
        return {}

    def again(self, _: Message) -> dict[str, Any]:
        """Forget what has come of its memory: it runs on over there, and is dumped once more."""
        if self._machine is not None:
            raise ProtocolError("A virtual machine is not dumped")
        if self._live is not None:
            self._live.cancel()
        if self._rounds is not None:
            self._rounds.cancel()
        self._live = self._rounds = None
        return {}

    def restore(self, _: Message) -> dict[str, Any]:
        """Restore everything; nothing of it runs yet."""
        for each in self._disks:
            each.whole()
        if self._machine is None:
            self._container().root_is_here()
        self._living().restore()
        return {}

    def why(self, _: Message) -> dict[str, Any]:
        """Raise what has failed, so that data was refused."""
        for each in self._disks:
            each.failed()
        if self._rounds is not None:
            self._rounds.failed()
        if isinstance(self._live, liverestore.Arrival):
            self._live.failed()
        return {}

    def _container(self) -> liverestore.Arrival:
        live = self._living()
        if not isinstance(live, liverestore.Arrival):
            raise ProtocolError("A virtual machine does not arrive like a container")
        return live

    def _living(self) -> liverestore.Arrival | machinearrival.Arrival:
        if self._live is None:
            raise ProtocolError("Nothing was prepared for memory")
        return self._live

    def commit(self, message: Message) -> dict[str, Any]:
        """Take the environment over, and start it when it is to run."""
        made, env = self._begun()
        self.disks_done(message)
        node = self._node
        conf = arrival.configuration(node, env, made)
        live = self._live
        if not self._shared and live is None and env.kind == Kind.CT:
            provision.furnish_missing(home.staging_of(env))
        if made.copy and made.driver:
            self._give_identity(env, storage.load(made.driver))
        try:
            what = (self._journal, self._ident)
            arrival.commit(node, env, conf, what, live.go if live is not None else lambda: None)
        except (VZError, OSError) as error:
            if decision.known(node.paths, self._ident) != decision.TAKEN:
                raise
            log.exception("%s was taken over, and its arrival is not finished", env.name)
            self._journal.leave()
            provision.repair_leftover(node, env)
            self._forget()
            return {"taken": True, "started": False, "problem": str(error)}
        if not self._lazy():
            self._journal.done()
            self._forget()
        node.publish("ve-migrate", env, state="stopped" if live is None else "running")
        log.info("%s has come from another node", env.name)
        if live is not None:
            return {"taken": True, "started": True, "problem": ""}
        return {"taken": True, **self._started(env, start=message["start"])}

    def pages(self, _: Message) -> dict[str, Any]:
        """Wait until all memory is here of one that runs already."""
        live = self._container()
        try:
            live.fetched()
        except (VZError, OSError):
            self._lost()
            raise
        self._journal.done()
        self._forget()
        return {}

    def _lost(self) -> None:
        """A part of its memory will not come: end it, and start it anew, as after a power cut."""
        _made, env = self._begun()
        live = self._container()
        log.error("%s: a part of its memory was lost: it is started anew", env.name)
        live.lost()
        self._journal.done()
        self._forget()
        self._started(env, start=True)

    def _give_identity(self, env: Environment, driver: storage.StorageDriver) -> None:
        """Make the guest another one than its original."""
        root = arrival.place_of(self._node, env.uuid)
        driver.mount(home.staging_of(env), root)
        try:
            with GuestRoot.open(root) as guest:
                clone.give_identity(guest, env.name)
        finally:
            driver.umount(home.staging_of(env), root)
            root.rmdir()

    def _started(self, env: Environment, *, start: bool) -> dict[str, Any]:
        if not start:
            return {"started": False, "problem": ""}
        try:
            lifecycle.start(self._node, env.uuid)
        except (VZError, OSError) as error:
            log.exception("%s has come from another node and does not start", env.name)
            return {"started": False, "problem": str(error)}
        return {"started": True, "problem": ""}

    def abort(self, _: Message | None = None) -> dict[str, Any]:
        """Take everything away again that is not committed."""
        if self._taken():
            self._lost()
            return {}
        for each in self._disks:
            each.stop()
        if self._live is not None:
            self._live.cancel()
        if self._rounds is not None:
            self._rounds.cancel()
        try:
            if self._journal is not None:
                env = self._known()[1]
                arrival.give_up(self._node, env, self._journal, shared=self._shared)
        finally:
            self._forget()
        return {}

    def _lazy(self) -> bool:
        return isinstance(self._live, liverestore.Arrival) and self._live.lazy

    def _taken(self) -> bool:
        """Whether it is ours, though not all of its memory is here."""
        if self._journal is None or not self._lazy():
            return False
        return decision.known(self._node.paths, self._ident) == decision.TAKEN

    def _forget(self) -> None:
        self._journal = None
        self._live = self._machine = self._rounds = None
        self._disks = []
        self._offer = None
        self._env = None
        held, self._held = self._held, ExitStack()
        held.close()

    def arriving(self) -> tuple[str, Environment]:
        """Return the id of the migration and what comes; raises ProtocolError."""
        return self._ident, self._begun()[1]

    def _known(self) -> tuple[Offer, Environment]:
        if self._offer is None or self._env is None:
            raise ProtocolError("The other node has not told what it is about")
        return self._offer, self._env

    def _begun(self) -> tuple[Offer, Environment]:
        if self._journal is None:
            raise ProtocolError("Nothing was reserved for the environment")
        return self._known()


def serve(node: Node, wire: Wire) -> None:
    """Answer the other node's questions until the connection ends."""
    with Arriving(node, wire) as arriving:
        answers = answers_of(node, arriving)
        while True:
            try:
                message = wire.receive(SESSION_TIMEOUT)
            except ConnectionBroken as error:
                log.info("a migration's connection has ended: %s", error)
                return
            if message["is"] == "bye":
                return
            if message["is"] == "pull":
                wire.send(answer({"pull": lambda asked: _give(node, wire, asked)}, message))
            else:
                wire.send(answer(answers, message))


def answers_of(node: Node, arriving: Arriving) -> dict[str, Callable[[Message], dict[str, Any]]]:
    """Return what answers each kind of question."""
    return {
        "check": arriving.check,
        "reserve": arriving.reserve,
        "disk": arriving.disk,
        "disks-done": arriving.disks_done,
        "memory": arriving.memory,
        "ready": arriving.ready,
        "prepare": arriving.prepare,
        "stream": arriving.stream,
        "why": arriving.why,
        "again": arriving.again,
        "restore": arriving.restore,
        "commit": arriving.commit,
        "pages": arriving.pages,
        "abort": arriving.abort,
        "outcome": lambda message: {"outcome": decision.ask(node.paths, message["id"])},
        "settled": lambda message: _settled(node, message),
        "decided": lambda message: _decided(node, message),
    }


def _give(node: Node, wire: Wire, message: Message) -> dict[str, Any]:
    """Be the giving side, because the other one has asked for it."""
    env = node.registry.resolve(message["ref"])
    request = Request.from_json(message["options"])
    peer = Peer(wire, Address(""), {"host": "the other node", "node": ""})
    with node.lease(env, "migrate"):
        return migrate.prepare_and_give(node, env, peer, request, Telling(wire)).to_json()


class Telling:
    """A Progress that the other node is shown."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def stage(self, text: str) -> None:
        """Tell of a part."""
        self._wire.send(messages.make("progress", stage=text, done=None, total=None, unit=""))

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        """Amounts are not told."""
        del done, total, unit
        self.check()

    def check(self) -> None:
        """Raise when the other node is gone."""
        self._wire.check()


def answer(answers: dict[str, Callable[[Message], dict[str, Any]]], message: Message) -> Message:
    """Return the answer to a question; every error becomes one."""
    ask = answers.get(message["is"])
    try:
        if ask is None:
            raise InvalidState(f"Nobody asked for '{message['is']}'")  # noqa: TRY301
        return messages.make("done", result=ask(message))
    except VZError as error:
        log.warning("migration: %s: %s", message["is"], error)
        return messages.failed(error)
    except OSError as error:
        log.exception("migration: %s", message["is"])
        return messages.failed(MigrationError(f"{message['is']}: {error}"))
    except Exception as error:
        log.exception("migration: a defect in %s", message["is"])
        return messages.failed(InternalError(f"{message['is']}: {error!r}"))


def _settled(node: Node, message: Message) -> dict[str, Any]:
    decision.forget(node.paths, message["id"])
    return {}


def _decided(node: Node, message: Message) -> dict[str, Any]:
    """The node that fetched something from us tells what became of it."""
    pulled.decided(node, message["id"], message["outcome"])
    migrate.restart(node)
    return {}
