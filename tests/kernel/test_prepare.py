"""The two-phase start: a container's network is furnished from outside before init runs."""

from __future__ import annotations

import os
import socket

import pytest

from engine import Engine, engine, wait_for
from pyvz.container.client import KeeperClient
from pyvz.container.runtime import NetworkAccess
from pyvz.errors import NetworkError, NotRunning, StartError
from pyvz.linux.netlink import Netlink, VethEnd

__all__ = ["engine"]


def furnish(access: NetworkAccess) -> None:
    """A pair of links that both live inside."""
    with Netlink(access.netlink) as inside:
        inside.add_veth(VethEnd("one0"), VethEnd("two0", "c4:37:72:00:00:01", access.namespace))
        inside.add_address(inside.need("two0").index, "10.1.2.3/24")


def test_what_prepare_does_is_there_when_init_runs(engine: Engine) -> None:
    spec = engine.spec()
    spec = spec._replace(argv=("/bin/sh", "-c", "ip addr > /net; exec sleep 100"))
    engine.runtime.start(spec, furnish)
    wait_for(
        lambda: (spec.root / "net").exists() and "10.1.2.3/24" in (spec.root / "net").read_text()
    )
    assert "one0" not in os.listdir("/sys/class/net")
    with engine.runtime.network(spec.uuid) as access, Netlink(access.netlink) as inside:
        assert inside.need("two0").mac == "c4:37:72:00:00:01"
        assert inside.delete_link(inside.need("two0").index)
    assert "two0" not in engine.shell(spec.uuid, "ip link").out
    # The keeper itself is where it was.
    pid = engine.keeper.call("ping").data["pid"]
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")


def test_a_failing_prepare_leaves_nothing(engine: Engine) -> None:
    spec = engine.spec()
    seen: list[int] = []

    def fail(access: NetworkAccess) -> None:
        seen.append(access.pid)
        raise NetworkError("no")

    with pytest.raises(NetworkError, match="no"):
        engine.runtime.start(spec, fail)
    wait_for(lambda: not os.path.exists(f"/proc/{seen[0]}"))
    assert engine.runtime.running() == {}
    engine.runtime.start(spec, furnish)


def test_a_child_that_dies_meanwhile(engine: Engine) -> None:
    spec = engine.spec()

    def kill(access: NetworkAccess) -> None:
        os.kill(access.pid, 9)
        wait_for(lambda: not os.path.exists(f"/proc/{access.pid}"))

    with pytest.raises(StartError, match="died"):
        engine.runtime.start(spec, kill)
    with pytest.raises(NotRunning), engine.runtime.network(spec.uuid):
        pass
    engine.runtime.start(spec)


def test_a_client_that_is_gone_takes_its_child_with_it(engine: Engine) -> None:
    spec = engine.spec()
    other = KeeperClient(engine.paths.keeper_socket)
    runtime = engine.new_runtime(other)
    seen: list[int] = []

    def hang_up(access: NetworkAccess) -> None:
        seen.append(access.pid)
        other._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        wait_for(lambda: not os.path.exists(f"/proc/{access.pid}"))

    with pytest.raises(Exception, match=r"died|gone|could not be asked"):
        runtime.start(spec, hang_up)
    other.close()
    engine.runtime.start(spec)
    assert list(engine.runtime.running()) == [spec.uuid]
