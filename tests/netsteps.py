"""Work in a network namespace, in a child that may die at any step of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dying import in_child
from pyvz.linux import file, nftables, rtnetlink, run, syscall
from pyvz.linux.netlink import Netlink
from pyvz.network import address, dhcp, links, uplink
from pyvz.store import trafficslots

# In which state a link is, as ip tells it: that comes by and by.
OPERSTATES = frozenset({"UP", "DOWN", "LOWERLAYERDOWN", "UNKNOWN", "DORMANT"})


def within(namespace: str, work: Callable[[], None]) -> int:
    """Do `work` in a child in the namespace."""

    def entered() -> None:
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        syscall.setns(fd, syscall.CLONE_NEWNET)
        os.close(fd)
        work()

    return in_child(entered)


def dying_at(step: int) -> None:
    """Let this process kill itself at the step: a request, a program, a file."""
    left = [step]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            count()
            return function(*args, **more)

        return call

    saying = Netlink._saying

    @contextmanager
    def steps(self: Netlink, what: str) -> Iterator[None]:
        if not what.startswith(("list", "look")):
            count()
        with saying(self, what):
            yield

    Netlink._saying = steps  # type: ignore[method-assign]
    carried_out = rtnetlink._carried_out

    def one_by_one(sock: Any, part: list[Any]) -> Any:
        for each in part:
            count()
            yield from carried_out(sock, [each])

    rtnetlink._carried_out = one_by_one
    run.run = counted(run.run)
    nftables.apply = counted(nftables.apply)
    for module in (file, uplink, dhcp, links, address, trafficslots):
        module.write_atomic = counted(module.write_atomic)  # type: ignore[attr-defined]
