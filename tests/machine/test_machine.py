"""A machine with Debian's kernel, systemd as PID 1 and cgroup v2 only: pyvz's life cycle in it.

The machine is emulated (TCG): /dev/kvm may open and still be unusable, and a guest that crawls
looks like a bug of ours.  It is booted once; every step of guest.py is a test of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guest
import image
import pytest

DEADLINE = 3600.0  # seconds for all steps; an eighth of that on an idle machine

pytestmark = [pytest.mark.machine, pytest.mark.timeout(DEADLINE + 600)]

STEPS = os.environ.get("PYVZ_MACHINE_STEPS", "")  # for trying some: "machine bootstrap ..."
SUITES = os.environ.get("PYVZ_MACHINES", "bookworm").split()


def qemu(base: image.Image, payload: Path, work: Path) -> list[str | Path]:
    """The command line: no network, two disks, the console and the report as files."""
    # fmt: off
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
        "-kernel", base.kernel, "-initrd", base.initrd,
        "-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 "
                   "systemd.unified_cgroup_hierarchy=1 mitigations=off "
                   "systemd.default_device_timeout_sec=600",
        "-drive", f"file={base.root},if=virtio,format=raw,snapshot=on,cache=unsafe",
        "-drive", f"file={payload},if=virtio,format=raw,readonly=on",
        "-serial", f"file:{work}/console", "-serial", f"file:{work}/report",
    ]
    # fmt: on


def boot(base: image.Image, payload: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Run the machine until it powers off; return its answers by step."""
    # QEMU keeps what "snapshot=on" writes in TMPDIR: a disk, not the memory of a tmpfs.
    environment = {**os.environ, "TMPDIR": str(work)}
    with (work / "qemu").open("w") as log:
        machine = subprocess.Popen(
            qemu(base, payload, work), stdin=subprocess.DEVNULL, stderr=log, env=environment
        )
    try:
        machine.wait(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        machine.kill()
        machine.wait()
    answers = {}
    for line in (work / "report").read_text(errors="replace").splitlines():
        answer = json.loads(line)
        answers[answer["step"]] = answer
    return answers


@pytest.fixture(scope="module", params=SUITES)
def answers(
    request: pytest.FixtureRequest, debian_tar: Path
) -> Iterator[dict[str, dict[str, Any]]]:
    """What the machine said, by step; where it was slow or silent, its console is shown."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.fail("qemu-system-x86_64 is not installed (script/bootstrap --machine)")
    base = image.base_image(request.param)
    with tempfile.TemporaryDirectory(dir=image.CACHE, prefix="run.") as name:
        work = Path(name)
        started = time.monotonic()
        found = boot(base, image.payload(work, debian_tar, STEPS), work)
        print(f"{request.param}: {time.monotonic() - started:.0f} s")
        for answer in found.values():
            print(f"  {answer.get('seconds', 0):6.1f} s  {answer['step']}")
        if "end" not in found:
            print((work / "qemu").read_text(), (work / "console").read_text()[-6000:])
        keep = os.environ.get("PYVZ_MACHINE_LOG")
        if keep:
            shutil.copytree(work, keep, ignore=shutil.ignore_patterns("*.img"), dirs_exist_ok=True)
        yield found


@pytest.mark.parametrize("step", [function.__name__ for function in guest.STEPS])
def test_step(answers: dict[str, dict[str, Any]], step: str) -> None:
    if STEPS and step not in STEPS.split():
        pytest.skip("not among PYVZ_MACHINE_STEPS")
    assert step in answers, "the machine did not come this far"
    print(answers[step]["text"])
    assert answers[step]["ok"], answers[step]["text"][-6000:]
