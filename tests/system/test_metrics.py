"""The endpoint for Prometheus, beancounters and statistics, of a real container."""

from __future__ import annotations

import re
import socket
import time
from urllib.request import urlopen

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def scrape(port: int) -> str:
    end = time.monotonic() + 200
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as reply:
                return str(reply.read().decode())
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_figures_of_a_container_are_told_everywhere(world: World) -> None:
    port = free_port()
    conf = world.root / "etc/vz/vz.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'METRICS="{port}"\n')
    world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
    world.run("prlctl", "set", "web", "--memsize", "96", "--swap", "0", "--cpulimit", "50")
    world.run("prlctl", "start", "web")
    text = scrape(port)

    def value(name: str) -> float:
        found = re.search(rf'^pyvz_{name}{{[^}}]*name="web"[^}}]*}} (\S+)$', text, re.MULTILINE)
        assert found, (name, text)
        return float(found[1])

    assert value("up") == 1
    assert value("memory_limit_bytes") == 96 << 20
    assert 0 < value("memory_bytes") <= 96 << 20
    assert value("cpu_limit_percent") == 50
    assert value("cpu_seconds_total") > 0
    assert value("processes") >= 1
    assert 'pyvz_environments{state="running",type="ct"} 1.0' in text

    rows = world.run("prlctl", "statistics", "web")
    assert re.search(r"^\tguest\.ram\.total:\t96$", rows, re.MULTILINE)
    counters = world.run("prlctl", "statistics", "web", "--filter", "ubc.*")
    held = re.search(r"^\tubc\.physpages:\t(\d+) (\d+) (\d+) (\d+) (\d+)$", counters, re.MULTILINE)
    assert held, counters
    assert 0 < int(held[1]) <= int(held[4]) == (96 << 20) // 4096
    listed = world.run("vzlist", "-H", "-o", "physpages.l,numproc,kmemsize", "web").split()
    assert int(listed[0]) == (96 << 20) // 4096
    assert int(listed[1]) >= 1
    assert int(listed[2]) > 0

    table = world.run("vzubc", "web")
    assert table.splitlines()[0] == "Version: 2.5"
    assert re.search(r"^ +physpages +\d+ +\d+ +24576 +24576 +\d+$", table, re.MULTILINE), table
    seen = world.run("vzstat", "-t")
    assert "web" in seen
