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
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
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

    def add(self, total: float, still: float) -> None:
        """Count one."""
        self.total.append(total)
        self.still.append(still)


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
        now = time.monotonic()
        moves.add(now - began, now - stood)
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


class Ours:
    """Two of our nodes, and a guest that has booted on one of them; `move` takes it over."""

    def __init__(self, root: Path, iso: Path, tar: Path, disk: int) -> None:
        from test_migrate_machine import Machine  # noqa: PLC0415  of the tests

        from twonodes import TwoNodes  # noqa: PLC0415

        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        root.mkdir()
        self._world = TwoNodes(root)
        try:
            self._world.wire()
            for side in (self._world.a, self._world.b):
                side.root.mkdir()
                side.ready(tar)
            self._world.keys()
            self._machine = Machine(self._world, iso)
            self._machine.boot()
            self._machine.inside(f"dd if=/dev/urandom of=/dev/sda bs=1M count={disk} conv=fsync")
        except BaseException:
            self.end()
            raise

    def move(self) -> tuple[float, float]:
        """Move the guest; seconds of all of it, and of those that it stood still."""
        began = time.monotonic()
        told = self._machine.move()
        took = time.monotonic() - began
        found = re.search(r"stood still for ([\d.]+) s", told)
        return took, float(found[1]) if found else 0.0

    def end(self) -> None:
        """End the guest and both nodes."""
        self._world.end()


def disk_of(work: Path, disk: int) -> Path:
    """Make an image as our guest's disk: of 64 MiB, DISK of them written."""
    raw, image = work / "disk.raw", work / "disk.qcow2"
    raw.write_bytes(os.urandom(disk << 20))
    os.truncate(raw, 64 << 20)
    _said("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    raw.unlink()
    return image


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--disk", type=int, default=48, help="MiB of data on the disk")
    given = parser.parse_args()
    from images import CACHE  # noqa: PLC0415  of the tests

    discs = CACHE.glob(f"tiny-{'?' * 12}.iso")  # of its key alone: others have more in their names
    iso = max(discs, key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp") as name, ExitStack() as stack:
        work = Path(name)
        work.chmod(0o755)
        (work / "none").touch()  # in the place of a template, which no machine needs
        image = disk_of(work, given.disk)
        # Namespaces are called by the directory's name: another run has others.
        mine = Ours(work / f"m{secrets.token_hex(3)}", iso, work / "none", given.disk)
        stack.callback(mine.end)
        lacking = libvirtmove.missing()
        pair = None if lacking else libvirtmove.Pair(work, image, iso)
        if pair is not None:
            stack.callback(pair.end)
        we, bare, other = Moves(), Moves(), Moves()
        for _ in range(given.runs):  # in turns: they have the same load
            we.add(*mine.move())
            plain(work, image, iso, bare)
            if pair is not None:
                other.add(*pair.move())
        line("a move", we.total, qemu=bare.total, libvirt=other.total, digits=2)
        line("the guest stands still", we.still, qemu=bare.still, libvirt=other.still, digits=2)
        if lacking:
            print(f"without {lacking}")


if __name__ == "__main__":
    main()
