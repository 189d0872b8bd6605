"""Live migration of a virtual machine: ours beside plain QEMU and libvirt, in the same run.

    .venv/bin/python -m bench.vmmove [--runs N] [--disk MIB]

Ours: two nodes with a real ssh between them (tests/twonodes.py), `prlctl migrate` there and back.
Plain: two QEMUs with the same words, disk by NBD and memory over Unix sockets, no ssh, no checks:
what the mechanism itself costs.  libvirt, where its QEMU driver is installed: see libvirtmove.py.
Seconds, medians; in brackets ours divided by the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import libvirtmove
from bench.vm import connected, line

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [os.fspath(TESTS), os.fspath(TESTS / "nodes")]

DEADLINE = 300.0


class Moves:
    """Seconds of several moves: all of it, and how long the guest stood still."""

    def __init__(self) -> None:
        self.total: list[float] = []
        self.still: list[float] = []


class Plain:
    """One QEMU that we start, and its monitor."""

    def __init__(self, work: Path, name: str, image: Path, iso: Path, *, incoming: bool) -> None:
        self.path = work / f"{name}.qmp"
        argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "160M"]
        argv += ["-S", "-nodefaults", "-display", "none", "-device", "virtio-scsi-pci,id=scsi0"]
        argv += [
            "-serial",
            f"file:{work}/{name}.log",
            "-qmp",
            f"unix:{self.path},server=on,wait=off",
        ]
        argv += ["-blockdev", f"driver=file,filename={image},node-name=file"]
        argv += ["-blockdev", "driver=qcow2,file=file,node-name=hdd0"]
        argv += ["-device", "scsi-hd,drive=hdd0,bus=scsi0.0"]
        argv += ["-blockdev", f"driver=file,filename={iso},node-name=iso,read-only=on"]
        argv += ["-device", "ide-cd,drive=iso"] + (["-incoming", "defer"] if incoming else [])
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self._sock = connected(self.path)
        self._file = self._sock.makefile("rw")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401  JSON
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def end(self) -> None:
        self._sock.close()
        self.process.kill()
        self.process.wait()


def until(wanted: Any) -> None:  # noqa: ANN401
    """Wait until WANTED() is true."""
    began = time.monotonic()
    while not wanted():
        if time.monotonic() - began > DEADLINE:
            raise TimeoutError
        time.sleep(0.005)


def plain(work: Path, image: Path, iso: Path, moves: Moves) -> None:
    """Move a guest that has booted from one QEMU to another, once."""
    target_image = work / "target.qcow2"
    size = str(json.loads(_said("qemu-img", "info", "--output=json", image))["virtual-size"])
    _said("qemu-img", "create", "-q", "-f", "qcow2", target_image, size)
    source = Plain(work, "source", image, iso, incoming=False)
    target = Plain(work, "target", target_image, iso, incoming=True)
    try:
        source.execute("cont")
        until(lambda: "TINY-READY" in (work / "source.log").read_text())
        began = time.monotonic()
        _mirror(work, source, target)
        capabilities = [{"capability": "pause-before-switchover", "state": True}]
        source.execute("migrate-set-capabilities", capabilities=capabilities)
        source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        target.execute("migrate-incoming", uri=f"unix:{work}/memory.sock")
        source.execute("migrate", uri=f"unix:{work}/memory.sock")
        until(lambda: source.execute("query-migrate")["status"] == "pre-switchover")
        stood = time.monotonic()
        source.execute("block-job-cancel", device="mirror")
        until(lambda: not source.execute("query-jobs"))
        source.execute("migrate-continue", state="pre-switchover")
        until(lambda: target.execute("query-migrate").get("status") == "completed")
        target.execute("nbd-server-stop")
        target.execute("cont")
        moves.total.append(time.monotonic() - began)
        moves.still.append(time.monotonic() - stood)
    finally:
        source.end()
        target.end()
        target_image.unlink()


def _mirror(work: Path, source: Plain, target: Plain) -> None:
    address = {"type": "unix", "data": {"path": f"{work}/nbd.sock"}}
    target.execute("nbd-server-start", addr=address)
    export = {"type": "nbd", "id": "hdd0", "node-name": "hdd0", "name": "hdd0", "writable": True}
    target.execute("block-export-add", **export)
    node = {"driver": "nbd", "node-name": "far", "export": "hdd0", "server": {"type": "unix"}}
    node["server"]["path"] = f"{work}/nbd.sock"  # type: ignore[index]
    source.execute("blockdev-add", **node)
    job = {"job-id": "mirror", "device": "hdd0", "target": "far", "sync": "top"}
    source.execute("blockdev-mirror", **job)
    until(lambda: source.execute("query-block-jobs")[0]["ready"])


def _said(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def ours(root: Path, iso: Path, tar: Path, given: argparse.Namespace, image: Path) -> Moves:
    """Move the guest between two nodes there and back; keeps a copy of its disk in IMAGE."""
    from test_migrate_machine import Machine  # noqa: PLC0415  of the tests

    from twonodes import TwoNodes  # noqa: PLC0415

    moves = Moves()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    root.mkdir()
    world = TwoNodes(root)
    try:
        world.wire()
        for side in (world.a, world.b):
            side.root.mkdir()
            side.ready(tar)
        world.keys()
        machine = Machine(world, iso)
        machine.boot()
        machine.inside(f"dd if=/dev/urandom of=/dev/sda bs=1M count={given.disk} conv=fsync")
        for _ in range(given.runs):
            began = time.monotonic()
            told = machine.move()
            moves.total.append(time.monotonic() - began)
            found = re.search(r"stood still for ([\d.]+) s", told)
            moves.still.append(float(found[1]) if found else 0.0)
        machine.at.prlctl("stop", "vm1", "--kill")
        home = next((machine.at.root / "vz/vmprivate").iterdir())
        shutil.copy(home / "harddisk.hdd", image)
    finally:
        world.end()
    return moves


def libvirt(work: Path, image: Path, iso: Path, runs: int) -> Moves:
    """Move the guest between two libvirtds there and back; nothing where libvirt is not."""
    moves = Moves()
    if lacking := libvirtmove.missing():
        print(f"without {lacking}")
        return moves
    pair = libvirtmove.Pair(work, image, iso)
    try:
        for _ in range(runs):
            total, still = pair.move()
            moves.total.append(total)
            moves.still.append(still)
    finally:
        pair.end()
    return moves


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--disk", type=int, default=48, help="MiB of data on the disk")
    given = parser.parse_args()
    from images import CACHE  # noqa: PLC0415  of the tests

    discs = CACHE.glob(f"tiny-{'?' * 12}.iso")  # of its key alone: others have more in their names
    iso = max(discs, key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp") as name:
        work = Path(name)
        work.chmod(0o755)
        (work / "none").touch()  # in the place of a template, which no machine needs
        image = work / "disk.qcow2"
        # Namespaces are called by the directory's name: another run has others.
        mine = ours(work / f"m{secrets.token_hex(3)}", iso, work / "none", given, image)
        peer = Moves()
        for _ in range(given.runs):
            plain(work, image, iso, peer)
        other = libvirt(work, image, iso, given.runs)
        line("a move", mine.total, qemu=peer.total, libvirt=other.total, digits=2)
        line("the guest stands still", mine.still, qemu=peer.still, libvirt=other.still, digits=2)


if __name__ == "__main__":
    main()
