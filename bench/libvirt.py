"""script/bench libvirt: calls of libvirt's clients per second, of vzd beside libvirt's own daemon.

    script/bench libvirt [--domains N] [--seconds S]

The same client (python-libvirt) asks all, in turns: vzd with N defined containers, and one libvirtd
with N defined domains of its driver `test`, which answers from memory, and N of its driver `qemu`.
None of them runs.  Latencies are medians; a ratio is that of the rates.  The processor time that a
daemon takes for a call hardly depends on what else the machine does.  The peer is Debian's
libvirt-daemon with libvirt-daemon-driver-qemu; it is started here and ended by its pid.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import libvirtd
from bench.peer import processor_time, unmount_below
from pyvz.container.client import KeeperClient

PYTHON = "/usr/bin/python3"  # the distribution's, with its package python3-libvirt
ROUNDS = 3
CALLS = ("list all", "state", "info", "description", "bulk statistics")
CONF = 'OSTEMPLATE="debian-12-x86_64"\nPHYSPAGES="131072:131072"\nCPUS="1"\nVE_TYPE="regular"\n'
CLIENT = """
import json, sys, time, libvirt
connection = libvirt.open(sys.argv[1])
seconds, count = float(sys.argv[2]), int(sys.argv[3])
kind = sys.argv[1].partition("+")[0]
if kind != "vz":
    for number in range(count):
        connection.defineXML("<domain type='%s'><name>ct%d</name><memory>524288</memory>"
                             "<vcpu>1</vcpu><os><type>hvm</type></os></domain>" % (kind, number))
one = connection.lookupByName("ct7")
calls = {
    "list all": lambda: connection.listAllDomains(0),
    "state": lambda: one.state(),
    "info": lambda: one.info(),
    "description": lambda: one.XMLDesc(0),
    "bulk statistics": lambda: connection.getAllDomainStats(0, 0),
}
assert len(connection.listAllDomains(0)) >= count
print("ready", flush=True)
for line in sys.stdin:
    work, times = calls[line.strip()], []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        begun = time.monotonic()
        work()
        times.append(time.monotonic() - begun)
    print(json.dumps(times), flush=True)
"""


class Client:
    """One program of python-libvirt that stays connected."""

    def __init__(self, uri: str, seconds: float, domains: int) -> None:
        self._daemon = daemon_behind(uri.partition("socket=")[2])
        self._process = subprocess.Popen(
            [PYTHON, "-c", CLIENT, uri, str(seconds), str(domains)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._line()

    def measure(self, call: str) -> tuple[list[float], float]:
        """Make a call again and again; returns the seconds of each, and the daemon's for all."""
        assert self._process.stdin is not None
        before = processor_time(self._daemon)
        self._process.stdin.write(f"{call}\n")
        self._process.stdin.flush()
        times: list[float] = json.loads(self._line())
        return times, processor_time(self._daemon) - before

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("bench: the client of libvirt ended")
        return line


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="script/bench libvirt", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--domains", type=int, default=200, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S")
    args = parser.parse_args()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyvz-bl-")))
        ours = stack.enter_context(our_daemon(place / "node", args.domains))
        theirs = stack.enter_context(their_daemon(place / "peer"))
        clients = [Client(uri, args.seconds, args.domains) for uri in (ours, *theirs)]
        for client in clients:
            stack.callback(client.close)
        report(clients, args.domains)


def report(clients: list[Client], domains: int) -> None:
    """Measure each call on both in turns, and print what was seen."""
    print(f"{domains} domains, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    names = ("vzd", "test", "qemu")
    columns = [*names, "/test", "/qemu", *(f"{name} ms" for name in names)]
    columns += [f"{name} us" for name in names]
    print(f"{'calls per second':18}" + "".join(f"{name:>8}" for name in columns))
    for call in CALLS:
        seen: list[list[float]] = [[] for _ in clients]
        worked = [0.0 for _ in clients]
        for _ in range(ROUNDS):
            for index, client in enumerate(clients):
                times, work = client.measure(call)
                seen[index] += times
                worked[index] += work
        rates = [len(times) / sum(times) for times in seen]
        ratios = [rates[0] / rate for rate in rates[1:]]
        medians = [statistics.median(times) * 1e3 for times in seen]
        work_each = [work / len(times) * 1e6 for work, times in zip(worked, seen, strict=True)]
        words = [*(f"{each:8.0f}" for each in rates), *(f"{each:8.2f}" for each in ratios)]
        words += [*(f"{each:8.2f}" for each in medians), *(f"{each:8.0f}" for each in work_each)]
        print(f"{call:18}{''.join(words)}", flush=True)


def daemon_behind(path: str) -> int:
    """Return the process that listens at a socket (unix(7): SO_PEERCRED)."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[0])


@contextmanager
def our_daemon(root: Path, domains: int) -> Iterator[str]:
    """Serve a node with DOMAINS stopped containers; yields its URI."""
    links = root / "etc/vz/conf"
    links.mkdir(parents=True)
    for number in range(domains):
        ident = str(uuid.uuid4())
        home = root / "vz/private" / ident
        (home / "fs").mkdir(parents=True)
        conf = f'{CONF}UUID="{ident}"\nNAME="ct{number}"\nVELAYOUT="simfs"\n'
        (home / "ve.conf").write_text(conf)
        (links / f"{ident}.conf").symlink_to(home / "ve.conf")
    argv = [sys.executable, "-P", "-m", "pyvz.daemon.main", "--foreground"]
    argv += ["--root", os.fspath(root)]
    try:
        with running(argv, root / "run/libvirt/virtvzd-sock") as path:
            yield f"vz+unix:///system?socket={path}"
    finally:
        keeper = KeeperClient(root / "run/pyvz/keeper.sock")
        os.kill(int(keeper.call("ping").data["pid"]), signal.SIGKILL)
        keeper.close()
        time.sleep(0.5)
        unmount_below(root)


@contextmanager
def their_daemon(place: Path) -> Iterator[tuple[str, str]]:
    """Serve libvirt's drivers `test` and `qemu`; yields their URIs.

    `qemu` has one domain more than the others, the one that libvirtd.Libvirtd defines.
    """
    if why := libvirtd.missing():
        sys.exit(f"bench: {why} is not installed")
    place.mkdir()
    peer = libvirtd.Libvirtd(place)
    try:
        way = f"socket={place}/libvirt-sock"
        yield f"test+unix:///default?{way}", f"qemu+unix:///system?{way}"
    finally:
        peer.end()


@contextmanager
def running(argv: list[str], path: Path) -> Iterator[Path]:
    """Run a daemon; yields its socket when it is there."""
    if shutil.which(argv[0]) is None:
        sys.exit(f"bench: {argv[0]} is not there")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: {argv[0]} does not serve {path}")
            time.sleep(0.1)
        yield path
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
