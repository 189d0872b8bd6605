"""The machine in which the steps run: made of its disks, booted once, its answers collected.

It is emulated (TCG): /dev/kvm may open and still be unusable, and a guest that crawls looks like a
bug of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import image
import pytest

DEADLINE = 3600.0  # seconds for all steps; an eighth of that on an idle machine
STEPS = os.environ.get("PYVZ_MACHINE_STEPS", "")  # for trying some: "machine bootstrap ..."
SUITES = os.environ.get("PYVZ_MACHINES", "bookworm").split()
KERNEL = (
    "root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off"
    " systemd.unified_cgroup_hierarchy=1 systemd.default_device_timeout_sec=600"
)

Answers = dict[str, dict[str, Any]]  # what the machine said, by step


def answers(
    base: image.Image, cache: dict[str, Path], kind: str, board: Sequence[str], words: str = ""
) -> Answers:
    """Run the steps of KIND in a machine and return its answers.

    board: QEMU's words for its processor and what is plugged into it.  words: more of them for the
    kernel.  Where it was silent its console is shown.
    """
    if shutil.which("qemu-system-x86_64") is None:
        pytest.fail("qemu-system-x86_64 is not installed (script/bootstrap --machine)")
    with tempfile.TemporaryDirectory(dir=image.CACHE, prefix="run.") as name:
        work = Path(name)
        started = time.monotonic()
        payload = image.payload(work, cache, kind, STEPS)
        found = _boot(_qemu(base, payload, [*board, "-append", f"{KERNEL} {words}"], work), work)
        print(f"{kind}: {time.monotonic() - started:.0f} s")
        for answer in found.values():
            print(f"  {answer.get('seconds', 0):6.1f} s  {answer['step']}")
        if "end" not in found:
            print((work / "qemu").read_text(), (work / "console").read_text()[-6000:])
        keep = os.environ.get("PYVZ_MACHINE_LOG")
        if keep:
            hidden = shutil.ignore_patterns("*.img")
            shutil.copytree(work, Path(keep) / kind, ignore=hidden, dirs_exist_ok=True)
    return found


def check(found: Answers, step: str) -> None:
    """Be the test of one step."""
    if STEPS and step not in STEPS.split():
        pytest.skip("not among PYVZ_MACHINE_STEPS")
    assert step in found, "the machine did not come this far"
    print(found[step]["text"])
    assert found[step]["ok"], found[step]["text"][-6000:]


def _qemu(base: image.Image, payload: Path, board: Sequence[str], work: Path) -> list[str | Path]:
    """The command line: no network, two disks, the console and the report as files."""
    # fmt: off
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-accel", "tcg,thread=multi", "-smp", "2", *board,
        "-kernel", base.kernel, "-initrd", base.initrd,
        "-drive", f"file={base.root},if=virtio,format=raw,snapshot=on,cache=unsafe",
        "-drive", f"file={payload},if=virtio,format=raw,readonly=on",
        "-serial", f"file:{work}/console", "-serial", f"file:{work}/report",
    ]
    # fmt: on


def _boot(argv: list[str | Path], work: Path) -> Answers:
    """Run the machine until it powers off; return its answers by step."""
    # QEMU keeps what "snapshot=on" writes in TMPDIR: a disk, not the memory of a tmpfs.
    environment = {**os.environ, "TMPDIR": str(work)}
    with (work / "qemu").open("w") as log:
        machine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log, env=environment)
    try:
        machine.wait(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        machine.kill()
        machine.wait()
    found = {}
    report = work / "report"
    lines = report.read_text(errors="replace").splitlines() if report.exists() else []
    for line in lines:
        answer = json.loads(line)
        found[answer["step"]] = answer
    return found
