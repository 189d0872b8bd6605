"""script/bench libvirt: calls of libvirt's clients per second, of vzd beside libvirt's own daemon.

    script/bench libvirt [--domains N] [--seconds S]

The same client (python-libvirt) asks both, in turns: vzd with N defined containers, and libvirtd
with N defined domains of its driver `test`, which answers from memory.  None of them runs.
Latencies are medians.  The peer is Debian's package libvirt-daemon; its daemon is started here and
ended by its pid.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peer import unmount_below
from pyvz.container.client import KeeperClient

PYTHON = "/usr/bin/python3"  # the distribution's, with its package python3-libvirt
LIBVIRTD = "/usr/sbin/libvirtd"
ROUNDS = 3
CALLS = ("list all", "state", "info", "description", "bulk statistics")
# It sees directories of its own, and Debian's user for QEMU need not be there.
ALONE = """
for place in /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt; do
    mkdir -p $place && mount -t tmpfs none $place || exit
done
for file in passwd group; do
    grep -v '^libvirt-qemu:' /etc/$file > /etc/libvirt/$file
done
echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >> /etc/libvirt/passwd
echo 'libvirt-qemu:x:64055:' >> /etc/libvirt/group
for file in passwd group; do
    mount --bind /etc/libvirt/$file /etc/$file || exit
done
exec "$0" "$@"
"""
CONF = 'OSTEMPLATE="debian-12-x86_64"\nPHYSPAGES="131072:131072"\nCPUS="1"\nVE_TYPE="regular"\n'
CLIENT = """
import json, sys, time, libvirt
connection = libvirt.open(sys.argv[1])
seconds, count = float(sys.argv[2]), int(sys.argv[3])
if sys.argv[1].startswith("test"):
    for number in range(count):
        connection.defineXML("<domain type='test'><name>ct%d</name><memory>524288</memory>"
                             "<vcpu>1</vcpu><os><type>hvm</type></os></domain>" % number)
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
        self._process = subprocess.Popen(
            [PYTHON, "-c", CLIENT, uri, str(seconds), str(domains)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._line()

    def measure(self, call: str) -> list[float]:
        """Make a call again and again; returns the seconds of each."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{call}\n")
        self._process.stdin.flush()
        times: list[float] = json.loads(self._line())
        return times

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
        clients = [Client(uri, args.seconds, args.domains) for uri in (ours, theirs)]
        for client in clients:
            stack.callback(client.close)
        report(clients, args.domains)


def report(clients: list[Client], domains: int) -> None:
    """Measure each call on both in turns, and print what was seen."""
    print(f"{domains} domains, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{'call':18}{'vzd/s':>9}{'libvirtd/s':>12}{'ratio':>8}{'vzd ms':>9}{'libvirtd ms':>13}")
    for call in CALLS:
        seen: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for index, client in enumerate(clients):
                seen[index] += client.measure(call)
        rates = [len(times) / sum(times) for times in seen]
        medians = [statistics.median(times) * 1e3 for times in seen]
        print(f"{call:18}{rates[0]:9.0f}{rates[1]:12.0f}{rates[0] / rates[1]:8.2f}"
              f"{medians[0]:9.2f}{medians[1]:13.2f}", flush=True)  # fmt: skip


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
    argv = [sys.executable, "-P", "-m", "pyvz.daemon.main", "--root", os.fspath(root)]
    try:
        with running(argv, root / "run/libvirt/virtvzd-sock") as socket:
            yield f"vz+unix:///system?socket={socket}"
    finally:
        keeper = KeeperClient(root / "run/pyvz/keeper.sock")
        os.kill(int(keeper.call("ping").data["pid"]), signal.SIGKILL)
        keeper.close()
        time.sleep(0.5)
        unmount_below(root)


@contextmanager
def their_daemon(place: Path) -> Iterator[str]:
    """Serve libvirt's driver `test`; yields its URI."""
    if not Path(LIBVIRTD).exists():
        subprocess.run(
            ["apt-get", "install", "-qy", "--no-install-recommends", "libvirt-daemon"],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
    place.mkdir()
    conf = place / "libvirtd.conf"
    conf.write_text(f'unix_sock_dir = "{place}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n')
    words = [LIBVIRTD, "-f", os.fspath(conf), "-p", os.fspath(place / "pid")]
    argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", ALONE, *words]
    with running(argv, place / "libvirt-sock") as socket:
        yield f"test+unix:///default?socket={socket}"


@contextmanager
def running(argv: list[str], socket: Path) -> Iterator[Path]:
    """Run a daemon; yields its socket when it is there."""
    if shutil.which(argv[0]) is None:
        sys.exit(f"bench: {argv[0]} is not there")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + 120
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: {argv[0]} does not serve {socket}")
            time.sleep(0.1)
        yield socket
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
