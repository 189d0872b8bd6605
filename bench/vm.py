"""Start of a virtual machine, list and statistics of many: ours beside bare QEMU, in one run.

    .venv/bin/python -m bench.vm [--runs N] [--many N] [--alive]

--alive: the many run, paused, with 32 MiB each (some minutes, and 50 MiB for each).

Medians in milliseconds, and in brackets ours divided by the other's: `prlctl start` until it has
returned, against QEMU with the same command line until its monitor says `running`, and against
`virsh start` of a libvirtd of our own, where libvirt's QEMU driver is installed.  Lists of the many
against a script in the same interpreter that asks the QEMU of each, by its monitor, for its state
(list) and also for what its disks and its balloon count (statistics); vzd does not run then, as
QEMU talks to one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bench import libvirtd
from bench.libvirtd import Libvirtd
from bench.peer import unmount_below
from pyvz.container.client import KeeperClient

SOURCE = Path(__file__).resolve().parents[1] / "src"
# As the launchers of script/bootstrap run it, and by their interpreter.
PRLCTL = (
    f"import sys; sys.path.insert(0, {os.fspath(SOURCE)!r}); from pyvz.cli import prlctl; "
    "from pyvz.cli.program import leave; leave(prlctl.main(sys.argv[1:]))"
)
PYTHON = "/usr/bin/python3"
# Asks the QEMUs whose monitors are named what the first word says, as one would without vzd.
ASK = """
import json, socket, sys
questions = sys.argv[1].split(',')
for path in sys.argv[2:]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    talk = sock.makefile('rwb')
    for question in ('qmp_capabilities', *questions):
        talk.write(json.dumps({'execute': question}).encode() + b'\\n')
    talk.flush()
    left = len(questions) + 1
    while left:
        answer = json.loads(talk.readline())
        left -= 'return' in answer or 'error' in answer
    print(path, answer)
"""
ASKED = {
    "list": "query-status",
    "statistics": "query-status,query-blockstats,query-balloon",
}
DEADLINE = 120.0
STARTS = 10  # tries to have vzd back: with many machines on a busy node it takes its time
PAUSE = 1.0  # seconds before a start: machines are not started without a breath


class Node:
    """A node below a temporary root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {**os.environ, "PYVZ_ROOT": os.fspath(root), "PYVZ_PYTHON": sys.executable}

    def prlctl(self, *words: str) -> float:
        """Run prlctl and return how many milliseconds it took."""
        began = time.monotonic()
        argv = [PYTHON, "-IS", "-c", PRLCTL, *words]
        subprocess.run(argv, env=self.env, check=True, stdout=subprocess.DEVNULL)
        return (time.monotonic() - began) * 1000

    def words(self) -> list[str]:
        """The command line of the machine that runs, without its descriptors."""
        path = next((self.root / "run/pyvz/vm").glob("*/process.json"))
        pid = json.loads(path.read_text())["pid"]
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]

    def ask(self, questions: str) -> float:
        """Ask every QEMU by its monitor; milliseconds of the program that does.  No vzd may run."""
        paths = sorted((self.root / "run/pyvz/vm").glob("*/monitor.sock"))
        argv: list[str | Path] = [PYTHON, "-IS", "-c", ASK, questions, *paths]
        began = time.monotonic()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        return (time.monotonic() - began) * 1000

    def end_vzd(self) -> None:
        """End vzd; the machines go on, and the next prlctl starts another."""
        lock = self.root / "run/pyvz/vzd.lock"
        handle = os.pidfd_open(int(lock.read_text()))
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        select.select([handle], [], [], DEADLINE)
        os.close(handle)

    def end(self) -> None:
        """Delete the machines, end the daemons, and unmount what they made."""
        for _ in range(STARTS):
            with suppress(subprocess.CalledProcessError):
                self.prlctl("list")
                break
        for home in (self.root / "vz/vmprivate").iterdir():
            self.prlctl("delete", home.name, "--force", "--timeout", "60")
        run = self.root / "run/pyvz"
        keeper = KeeperClient(run / "keeper.sock")
        pid = int(keeper.call("ping").data["pid"])
        keeper.close()
        self.end_vzd()  # first: it would start another keeper
        os.kill(pid, signal.SIGKILL)
        unmount_below(self.root)


def own_sockets(words: list[str], work: Path) -> list[str]:
    """Return a command line with sockets that QEMU makes itself, and no descriptors of ours."""
    argv: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if "-add-fd" in {before, word}:
            continue
        if word.startswith("socket,id="):
            name = word.split(",")[1].removeprefix("id=")
            path = work / f"{name}.sock"
            path.unlink(missing_ok=True)
            argv.append(f"socket,id={name},path={path},server=on,wait=off")
        else:
            argv.append(word)
    return argv


def connected(path: Path) -> socket.socket:
    """Connect to QEMU's monitor as soon as it is there."""
    began = time.monotonic()
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(os.fspath(path))
        except OSError:
            sock.close()
            if time.monotonic() - began > DEADLINE:
                raise
            time.sleep(0.002)
        else:
            return sock


def bare(words: list[str], work: Path) -> float:
    """Start QEMU with WORDS, its sockets made by itself; milliseconds until it runs."""
    argv = own_sockets(words, work)
    began = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        with connected(work / "monitor.sock") as sock, sock.makefile("rwb") as talk:
            for command in ("qmp_capabilities", "cont", "query-status"):
                talk.write(json.dumps({"execute": command}).encode() + b"\n")
            talk.flush()
            for text in talk:
                answer = json.loads(text).get("return")
                if isinstance(answer, dict) and answer.get("status") == "running":
                    return (time.monotonic() - began) * 1000
        raise RuntimeError("QEMU has ended")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def line(name: str, ours: list[float], *, digits: int = 0, **peers: list[float]) -> None:
    """Print one row: medians, and the ratio to each peer."""
    middle = statistics.median(ours)
    text = f"{name:32} {middle:8.{digits}f}"
    for peer, times in peers.items():
        if times:
            other = statistics.median(times)
            text += f"   {peer} {other:8.{digits}f}   [{middle / other:.2f}]"
    print(text)


def starts(node: Node, runs: int) -> None:
    """Measure the start of a machine, in turns with its peers."""
    node.prlctl("create", "one", "--vmtype", "vm", "--no-hdd")
    node.prlctl("set", "one", "--memsize", "256")
    ours: list[float] = []
    bare_qemu: list[float] = []
    virsh: list[float] = []
    lacking = libvirtd.missing()
    libvirt = None if lacking else Libvirtd(node.root / "libvirt")
    try:
        for _ in range(runs):
            time.sleep(PAUSE)
            ours.append(node.prlctl("start", "one"))
            words = node.words()
            node.prlctl("stop", "one", "--kill")
            bare_qemu.append(bare(words, node.root))
            if libvirt is not None:
                virsh.append(libvirt.start())
    finally:
        if libvirt is not None:
            libvirt.end()
    line("start until it runs", ours, bare_qemu=bare_qemu, virsh=virsh)
    if lacking:
        print(f"without {lacking}")


def looks(node: Node, runs: int, many: int, *, alive: bool) -> None:
    """Measure what is asked of many machines at once."""
    names = ["one", *(f"m{number}" for number in range(many - 1))]
    for each in names[1:]:
        node.prlctl("create", each, "--vmtype", "vm", "--no-hdd")
    for each in names if alive else ():
        node.prlctl("set", each, "--memsize", "32", "--cpus", "1")
        node.prlctl("start", each)
        node.prlctl("pause", each)
    line("a command line that asks nothing", [node.prlctl("--version") for _ in range(runs)])
    state = "paused" if alive else "stopped"
    ours = {verb: [node.prlctl(verb, "-a") for _ in range(runs)] for verb in ASKED}
    bare: dict[str, list[float]] = {verb: [] for verb in ASKED}
    if alive:
        node.end_vzd()
        bare = {verb: [node.ask(asked) for _ in range(runs)] for verb, asked in ASKED.items()}
    for verb, times in ours.items():
        line(f"{verb} of {many} {state}", times, monitors=bare[verb])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--many", type=int, default=40)
    parser.add_argument("--alive", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp") as name:
        node = Node(Path(name))
        try:
            starts(node, given.runs)
            looks(node, given.runs, given.many, alive=given.alive)
        finally:
            node.end()


if __name__ == "__main__":
    main()
