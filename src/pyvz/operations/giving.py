"""An environment goes to another node, phase by phase; the other side's are in immigrate.py.

    check - reserve - rounds of the disks while it runs - halt - last round - commit - clean up
                                     with its memory: freeze, dump - last round - images - restore

Until the other node has decided to take over, whatever fails leaves the environment here as it was.
The decision is the other node's alone (migration/decision.py); a broken connection in that moment
is healed by asking.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pyvz.container.frame import Frame
from pyvz.errors import Cancelled, CheckpointError, InDoubt, VZError
from pyvz.linux import file
from pyvz.migration import decision, iterate
from pyvz.migration.dial import Peer
from pyvz.migration.offer import HOME, MIRROR, TOKEN, DiskOffer
from pyvz.migration.pageline import PageLine
from pyvz.migration.request import Report, Request
from pyvz.migration.timeline import Timeline
from pyvz.migration.wire import Channel, Refused
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    departure,
    lifecycle,
    livedump,
    offering,
    oncemore,
    precopy,
    suitable,
)
from pyvz.operations.lifecycle import StartOptions, StopOptions
from pyvz.operations.node import Node
from pyvz.operations.outgoing import Outgoing
from pyvz.operations.precopy import Precopy
from pyvz.operations.standstill import Standstill
from pyvz.store.journal import Journal

log = logging.getLogger(__name__)

_PAGES_TIMEOUT: Final = 7 * 86400.0  # a dead connection is seen at once
_DOUBT_PATIENCE: Final = 60.0  # seconds in which an unknown outcome is asked for again and again


class Giving:
    """One migration as it goes on."""

    def __init__(
        self, node: Node, env: Environment, peer: Peer, request: Request, progress: Progress
    ) -> None:
        self.node, self.env, self.peer = node, env, peer
        self.request, self.progress = request, Timeline(progress)
        self.ident = str(uuid4())
        self.running = node.status(env) in {Status.RUNNING, Status.PAUSED}
        self.began = time.monotonic()
        self.halted_at: float | None = None
        self.resumed_at = 0.0
        self.memory = 0
        self.paged = 0  # bytes that were fetched when it ran there already
        self._precopy: Precopy | None = None
        self._no_precopy = ""  # why not
        self._journal: Journal | None = None
        self._stack = ExitStack()
        self._disks: list[Outgoing] = []
        self._rounds: list[int] = []
        self.shared = False
        # Whether the other node has it; None: it was asked, and has not said.  Only while this is
        # False there is a way back, whatever fails.
        self._taken: bool | None = False

    def run(self) -> Report:
        """All phases."""
        try:
            self._check()
            if self.request.dry_run:
                return self._report({"started": False, "problem": ""}, 0.0)
            self._reserve()
            self._running_rounds()
            if not self.offer.live:
                self._halt()
                self._last_round()
        except BaseException as error:
            self._back(error)
            raise
        return self._live() if self.offer.live else self._commit()

    def close(self) -> None:
        """Let go of everything that is open."""
        self._stack.close()

    # check

    def _check(self) -> None:
        self.progress.stage("Checking")
        self.offer = offering.offer(self.node, self.env, self.request, running=self.running)
        token = self.env.home / TOKEN
        try:
            file.write_atomic(token, self.offer.token, 0o600)
            answer = self.peer.call(
                "check", id=self.ident, offer=self.offer.to_json(), progress=self.progress
            )
        finally:
            token.unlink(missing_ok=True)
        self._there = answer
        self.shared = bool(answer.get("shared"))
        if self.shared:
            suitable.check_shared(self.offer, clone=self.request.clone)

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
                # Of a virtual machine nothing stays, as with the original: its disks are large.
                "remove": self.request.remove or self.env.kind == Kind.VM,
                "shared": self.shared,
            },
        )
        self.peer.call("reserve", progress=self.progress)
        if self.shared:
            return
        if self.offer.live:
            self._beside()
        for disk in self.offer.disks:
            if disk.form != MIRROR and (disk.form != HOME or not self.offer.live):
                self._disks.append(self._open(disk))

    def _open(self, disk: DiskOffer) -> Outgoing:
        """Have the other node wait for a disk."""
        outgoing = self._stack.enter_context(Outgoing(self.node, self.env, disk, self.peer))
        self.peer.call(
            "disk",
            name=disk.name,
            form=disk.form,
            driver=disk.driver,
            size=outgoing.size(),
            channel=outgoing.channel.number,
            progress=self.progress,
        )
        return outgoing

    def _beside(self) -> None:
        """Send what no process of the container can change, and the mounting of its root needs."""
        with self._told():
            for disk in self.offer.disks:
                if disk.form == HOME:
                    outgoing = self._open(disk)
                    outgoing.send(still=True, progress=self.progress)
                    outgoing.finish()

    # disks

    def _running_rounds(self) -> None:
        if not self.running or self.shared:
            return
        live = [each for each in self._disks if each.disk.form != HOME]
        while live and self._pays():
            self._round(live, still=False)

    def _pays(self) -> bool:
        """Whether another round of the disks does."""
        return iterate.goes_on(self._rounds, small=iterate.SMALL_DISK, growth=iterate.DISK_GROWTH)

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
                amount += each.send(still=still, progress=self.progress)
        self._rounds.append(amount)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """When the other node refuses data, raise its reason."""
        try:
            yield
        except Refused:
            self.peer.call("why")
            raise

    # halt

    def _halt(self) -> None:
        self.halted_at = time.monotonic()
        if not self.running:
            return
        assert self._journal is not None  # noqa: S101  begun by _reserve
        self.progress.stage("Stopping")
        self._journal.note(departure.HALTED)
        self._stop_it()

    def _stop_it(self) -> None:
        lifecycle.halt(self.node, self.env, StopOptions(), self.progress)

    def _start_again(self) -> None:
        if self.env.uuid not in self.node.runtime.running():
            lifecycle.start_locked(self.node, self.env, StartOptions(), NoProgress())

    # with its memory

    def _live(self) -> Report:
        """Freeze, dump, deliver, and let the other node decide, while nothing of it runs."""
        journal = self._journal
        assert journal is not None  # noqa: S101  begun by _reserve
        live = livedump.Live(self.node, self.env)
        answer: dict[str, Any] = {}
        try:
            oncemore.until_done(self.env.name, lambda: self._dumped(live, answer), self._once_more)
        except BaseException as error:
            if not self._gone_though(error):
                raise
        still_for = self.resumed_at - (self.halted_at or self.resumed_at)
        return self._forward(journal, self._report(answer, still_for))

    def _gone_though(self, error: BaseException, release: Callable[[], None] | None = None) -> bool:
        """Whether it has gone though something failed; if not, all is as it was afterwards.

        release: lets it go on.  While nobody knows whether it has gone it stands still.
        """
        if self._taken:
            log.warning("%s has gone, and then: %s", self.env.name, error, exc_info=error)
        elif self._taken is False and not isinstance(error, InDoubt):
            if release is not None:
                release()
            self._back(error)
        return bool(self._taken)

    def _dumped(self, live: livedump.Live, answer: dict[str, Any]) -> None:
        """Dump and deliver; raises NotNow: it was doing what cannot be dumped, and goes on."""
        with self._standstill() as still:
            pages = self._pages() if self.request.post_copy else None
            hooks = self._hooks(still, pages, live, answer)
            live.run(hooks, None if pages is None else pages[0])

    def _once_more(self) -> None:
        self.progress.stage("Waiting for a better moment")
        self.peer.call("again", progress=self.progress)

    def _hooks(
        self,
        still: Standstill,
        pages: tuple[PageLine, Channel] | None,
        live: livedump.Live,
        answer: dict[str, Any],
    ) -> livedump.Hooks:
        journal = self._journal
        assert journal is not None  # noqa: S101

        def ready(images: Path) -> None:
            still.ready(images, self.offer.memory, None if pages is None else pages[1])
            journal.note(departure.FROZEN)
            self.progress.stage("Freezing")

        def lock() -> None:
            self.halted_at = time.monotonic()
            still.begin()

        def send(images: Path) -> None:
            still.finish(images)
            self.memory = still.memory
            self._rounds += [still.disk] if self._disks else []

        def decide() -> None:
            # Noted early: the disk takes its time, and nothing was asked yet.
            still.restore(lambda: journal.note(departure.DECIDING))
            try:
                answer.update(self._decide(journal))
            finally:
                live.taken = bool(self._taken)

        def follow() -> None:
            self.progress.stage("Fetching memory")
            try:
                self.peer.call("pages", timeout=_PAGES_TIMEOUT)
            except VZError as error:
                log.warning("%s: its memory did not arrive: %s", self.env.name, error)
                answer["problem"] = (
                    "a part of its memory was lost on the way, and it cannot go on without: it is "
                    f"ended there and started anew from its disks ({error.message})"
                )

        return livedump.Hooks(self._memory_rounds, ready, lock, send, decide, follow)

    def _memory_rounds(self, images: Path, frame: Frame) -> str:
        """Send memory while it runs, where that can be; returns the name of the last round."""
        assert self._journal is not None  # noqa: S101  begun by _reserve
        if self.request.memory_rounds:
            self._no_precopy = precopy.reason_against(self.node, self._there)
        else:
            self._no_precopy = "it is not wanted (--noiter)"
        if self._no_precopy:
            log.info("%s: memory goes in one piece: %s", self.env.name, self._no_precopy)
            return ""
        self._journal.note(departure.FROZEN)  # CRIU halts it for each round
        rounds = Precopy(self.node, self.env, self.peer, self.progress)
        try:
            last = rounds.run(images, frame, self.offer.memory, self._round_between)
        except CheckpointError as error:  # the dump itself may well succeed
            log.warning("%s: a round of its memory failed: %s", self.env.name, error)
            self._no_precopy = f"CRIU has failed ({error.message})"
            self.peer.call("again", progress=self.progress)
            return ""
        self._precopy = rounds
        return last

    def _round_between(self) -> None:
        """The first round of memory takes its time: what the disks have become meanwhile."""
        if self._disks:
            self._round(self._disks, still=False)

    def _pages(self) -> tuple[PageLine, Channel]:
        """Make the line by which pages are fetched (post-copy)."""
        channel = self.peer.new_channel()

        def moved(total: int) -> None:
            self.paged = total
            with suppress(Cancelled):  # too late: it runs there
                self.progress.advance(total, self.offer.memory)

        line = PageLine(channel, serving=True, moved=moved)
        self._stack.callback(line.close)
        return line, channel

    @contextmanager
    def _standstill(self) -> Iterator[Standstill]:
        """Have one for the block; what it has failed of is raised in place of CRIU's words."""
        disks = [] if self.shared else self._disks
        with Standstill(self.node, self.env, self.peer, disks, self.progress) as still:
            try:
                with self._told():
                    yield still
            except VZError as error:
                if (cause := still.failure()) is not None:
                    with self._told():
                        raise cause from error
                raise

    # commit

    def _commit(self) -> Report:
        """Let the other node take over one that stands still here."""
        journal = self._journal
        assert journal is not None  # noqa: S101  begun by _reserve
        try:
            answer = self._decide(journal)
        except BaseException as error:
            self._gone_though(error)
            raise
        still_for = self.resumed_at - (self.halted_at or self.resumed_at)
        return self._forward(journal, self._report(answer, still_for))

    def _decide(self, journal: Journal) -> dict[str, Any]:
        """Ask the other node to take over.  From here on it alone knows whether it did.

        Raises what went wrong when it did not, and only then; InDoubt.
        """
        start = self.running and self.request.start
        self.progress.stage("Committing")
        if not self.offer.live:
            journal.note(departure.DECIDING)
        self._taken = None
        try:
            answer = self.peer.call("commit", start=start)
        except (VZError, OSError) as error:
            if self._outcome(error) != decision.TAKEN:
                self._taken = False
                journal.note(departure.KEPT)
                raise
            answer = {"started": False, "problem": str(error)}
        self._taken = True
        self.resumed_at = time.monotonic()
        try:
            journal.note(departure.GIVEN)
        except (VZError, OSError):  # after a death the other node is asked, and says the same
            log.exception("%s has gone, which could not be noted", self.env.name)
        return answer

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
                if time.monotonic() > deadline or not self.peer.address.host:
                    self._journal.leave()
                    raise
            time.sleep(1.0)

    def _forward(self, journal: Journal, report: Report) -> Report:
        """It is gone: clean up.  What fails here is told, and done by `repair` later."""
        record = Journal.leftover(self.node.paths, self.env.uuid)
        assert record is not None  # noqa: S101  it is ours
        try:
            self.close()
            departure.settle(self.node, self.env, record, decision.TAKEN)
        except (VZError, OSError) as error:
            log.exception("%s: what it left here could not be cleaned up yet", self.env.name)
            journal.leave()
            left = f"what it left here could not be removed yet: {error}"
            return report._replace(problem="; ".join(filter(None, (report.problem, left))))
        journal.done()
        state = "running" if self.offer.live else "stopped"
        self.node.publish("ve-migrated", self.env, host=self.peer.host, state=state)
        try:
            self.peer.call("settled", id=self.ident, timeout=30.0)
        except VZError as error:
            log.info("%s: %s", self.env.name, error)
        return report

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
            if record.step(departure.HALTED):
                self._start_again()
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
            memory=self.memory + self.paged + (self._precopy.bytes if self._precopy else 0),
            started=bool(answer.get("started")),
            problem=str(answer.get("problem") or ""),
            phases=self.progress.phases(),
            memory_rounds=tuple(self._precopy.pages) if self._precopy else (),
            precopy=self._no_precopy,
        )
