"""The operations, each measured on all peers in turn, so that a slow moment hits all of them."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench.peer import Missing, Peer, parent, pss

BOX = "b1"
SETTLE = 2.0  # seconds of rest before memory is read


class Figure(NamedTuple):
    """What was seen of one operation on one peer: numbers, or why there are none."""

    values: tuple[float, ...] = ()
    why: str = ""

    @property
    def median(self) -> float | None:
        """The median, None without numbers."""
        return statistics.median(self.values) if self.values else None


class Plan(NamedTuple):
    """How much is measured."""

    runs: int
    lists: tuple[int, ...]
    many: int  # containers that run at once, for memory

    @property
    def few(self) -> int:
        """Runs of the operations that take seconds."""
        return max(3, self.runs // 3)


Results = dict[tuple[str, str], Figure]  # by operation and peer


def say(text: str) -> None:
    """Tell where we are, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """The state of a measurement: which peers still take part, and what was seen."""

    def __init__(self, peers: Sequence[Peer], plan: Plan) -> None:
        self.peers = list(peers)
        self.plan = plan
        self.results: Results = {}

    def note(self, operation: str, peer: Peer, value: float) -> None:
        """Add one number."""
        old = self.results.get((operation, peer.name), Figure())
        if not old.why:
            self.results[operation, peer.name] = Figure((*old.values, value))

    def refuse(self, operation: str, peer: Peer, why: str) -> None:
        """The peer has no such operation, or it failed."""
        self.results[operation, peer.name] = Figure(why=why)
        if why != "n/a":
            say(f"{peer.name}: {operation}: {why}")

    def rounds(self, operation: str, runs: int, once: Callable[[Peer], float | None]) -> None:
        """Measure an operation on all peers in turn, RUNS times."""
        say(operation)
        for _ in range(runs):
            for peer in self.peers:
                if self.results.get((operation, peer.name), Figure()).why:
                    continue
                try:
                    value = once(peer)
                except (Missing, TimeoutError) as error:
                    self.refuse(operation, peer, str(error))
                    continue
                if value is None:
                    self.refuse(operation, peer, "n/a")
                else:
                    self.note(operation, peer, value)

    def create(self) -> None:
        """A container from the image."""

        def once(peer: Peer) -> float:
            gone(peer, "b3")
            return peer.timed(peer.create("b3")) * 1e3

        self.rounds("create", self.plan.few, once)

    def delete(self) -> None:
        """A stopped container and its files."""

        def once(peer: Peer) -> float:
            gone(peer, "b3")
            peer.run(peer.create("b3"))
            return peer.timed(peer.delete("b3")) * 1e3

        self.rounds("delete", self.plan.few, once)

    def start(self) -> None:
        """Until the command returns."""

        def once(peer: Peer) -> float:
            down(peer, BOX)
            return peer.timed(peer.start(BOX)) * 1e3

        self.rounds("start", self.plan.runs, once)
        for peer in self.peers:
            quietly(down, peer, BOX)

    def boot(self) -> None:
        """Until systemd inside says that it is through."""

        def once(peer: Peer) -> float:
            down(peer, BOX)
            begun = time.perf_counter()
            peer.run(peer.start(BOX))
            booted(peer, BOX)
            return (time.perf_counter() - begun) * 1e3

        self.rounds("boot", self.plan.few, once)

    def exec(self) -> None:
        """/bin/true inside."""
        self.all_up()
        self.rounds("exec", self.plan.runs * 2, lambda p: p.timed(p.exec(BOX, "/bin/true")) * 1e3)

    def limit(self) -> None:
        """A new CPU limit for a running container."""
        self.all_up()
        percent = 50

        def once(peer: Peer) -> float | None:
            nonlocal percent
            percent = 130 - percent
            argv = peer.limit(BOX, percent)
            return peer.timed(argv) * 1e3 if argv else None

        self.rounds("limit", self.plan.runs, once)
        for peer in self.peers:
            quietly(lambda p: p.run(p.limit(BOX, 200) or ["true"]), peer)

    def list(self) -> None:
        """All containers: one that runs and many that do not."""
        self.all_up()
        have = dict.fromkeys((peer.name for peer in self.peers), 1)
        for count in self.plan.lists:

            def once(peer: Peer, count: int = count) -> float | None:
                if not peer.listing() or (count > 1 and not peer.create_tiny("x")):
                    return None
                while have[peer.name] < count:
                    peer.run(peer.create_tiny(f"f{have[peer.name]}"))
                    have[peer.name] += 1
                return peer.timed(peer.listing()) * 1e3

            self.rounds(f"list of {count}", self.plan.runs, once)
        for peer in self.peers:
            for number in range(1, have[peer.name]):
                quietly(lambda p, n=number: p.run(p.delete(f"f{n}")), peer)

    def stop(self) -> None:
        """An orderly shutdown of a booted container."""

        def once(peer: Peer) -> float:
            up(peer, BOX)
            return peer.timed(peer.stop(BOX)) * 1e3

        self.rounds("stop", self.plan.few, once)

    def kill(self) -> None:
        """A forced stop of a booted container."""

        def once(peer: Peer) -> float:
            up(peer, BOX)
            return peer.timed(peer.kill(BOX)) * 1e3

        self.rounds("kill", self.plan.few, once)

    def memory(self) -> None:
        """KiB (Pss) of the daemons, and what each running container adds outside of itself."""
        for peer in self.peers:
            say(f"memory of {peer.name} with {self.plan.many} containers")
            quietly(down, peer, BOX)
            try:
                time.sleep(SETTLE)
                before = sum(pss(pid) for pid in peer.daemons())
                after = self.crowd(peer)
            except Missing as error:
                self.refuse("memory each", peer, str(error))
                continue
            self.note("memory daemon", peer, before)
            self.note("memory each", peer, (after - before) / self.plan.many)

    def crowd(self, peer: Peer) -> int:
        """The KiB of daemons and monitors while many containers run."""
        names = [f"m{number}" for number in range(self.plan.many)]
        try:
            monitors = set()
            for name in names:
                gone(peer, name)
                peer.run(peer.create(name))
                peer.run(peer.start(name))
                booted(peer, name)
                monitors.add(parent(peer.init(name)))
            time.sleep(SETTLE)
            daemons = set(peer.daemons())
            # Whoever started us inherits orphans; that is no monitor.
            return sum(pss(pid) for pid in (monitors | daemons) - reapers())
        finally:
            for name in names:
                quietly(gone, peer, name)

    def all_up(self) -> None:
        """The container runs on every peer; who cannot, fails in the operation itself."""
        for peer in self.peers:
            quietly(up, peer, BOX)


def reapers() -> set[int]:
    """PID 1 and our own ancestors."""
    found, pid = {0, 1}, os.getppid()
    while pid > 1:
        found.add(pid)
        pid = parent(pid)
    return found


def quietly(function: Callable[..., object], *arguments: object) -> None:
    """Preparation: its failure shows in the operation that needs it."""
    try:
        function(*arguments)
    except Missing as error:
        say(str(error))


def down(peer: Peer, name: str) -> None:
    """The container does not run."""
    if peer.init(name):
        peer.run(peer.kill(name))


def gone(peer: Peer, name: str) -> None:
    """The container does not exist."""
    down(peer, name)
    peer.run(peer.delete(name), check=False)


def booted(peer: Peer, name: str, timeout: float = 60.0) -> None:
    """Wait for systemd inside; early on its socket is not there yet, so ask again."""
    ask = peer.exec(name, "/bin/systemctl", "is-system-running", "--wait")
    deadline = time.monotonic() + timeout
    while True:
        answer = peer.run(ask, check=False).strip()
        if answer in {"running", "degraded"}:
            return
        if time.monotonic() > deadline:
            raise Missing(f"not booted after {timeout:.0f} s: {answer}")
        time.sleep(0.02)


def up(peer: Peer, name: str) -> None:
    """The container runs and its boot is over."""
    if not peer.init(name):
        peer.run(peer.start(name))
    booted(peer, name)


OPERATIONS = (
    "create", "start", "boot", "exec", "list", "limit", "stop", "kill", "delete", "memory",
)  # fmt: skip


def measure(peers: Sequence[Peer], plan: Plan, operations: Iterable[str]) -> Results:
    """Everything that was asked for."""
    bench = Bench(peers, plan)
    for peer in peers:
        quietly(gone, peer, BOX)
        try:
            peer.run(peer.create(BOX))
        except Missing as error:
            say(f"{peer.name}: {error}")
    for operation in operations:
        getattr(bench, operation)()
    return bench.results
