"""Which accelerator QEMU gets: kvm where it really works, else tcg (emulation).

Three steps, the cheap ones first: the processor has hardware virtualization; the kernel's KVM is
the processor's own; and it runs 64-bit code at speed, which a child shows that may be killed.  The
verdict is kept for the boot, and as long as KVM's modules are the same.  VM_ACCELERATOR of vz.conf
forces one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue, CommandFailed, Timeout
from pyvz.linux.file import write_atomic
from pyvz.linux.process import boot_id
from pyvz.linux.run import run
from pyvz.vm.kvmprobe import LIMIT

KEY = "VM_ACCELERATOR"  # of vz.conf: auto, kvm or tcg
PATIENCE = 60.0  # seconds for the probe: Python's start on a busy node
MODULES = Path("/sys/module")
_OWN, _OTHER = ("kvm_intel", "kvm_amd"), ("kvm_pvm",)
_FILE = "accelerator.json"


class Accelerator(NamedTuple):
    """name: kvm or tcg.  reason: why."""

    name: str
    reason: str


def choose(run_directory: Path, forced: str = "") -> Accelerator:
    """Return the accelerator of this node; FORCED is what vz.conf says.  Raises BadValue."""
    word = forced.strip().lower()
    if word in {"kvm", "tcg"}:
        return Accelerator(word, f"{KEY} of vz.conf says so")
    if word not in {"", "auto"}:
        raise BadValue(f"{KEY}: '{forced}' is not one of auto, kvm, tcg")
    path = run_directory / _FILE
    now: dict[str, object] = {"boot": boot_id(), "modules": _loaded(MODULES)}
    known = _read(path, now)
    if known is None:
        known = probe()
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, json.dumps({**now, **known._asdict()}), 0o644)
    return known


def _read(path: Path, now: dict[str, object]) -> Accelerator | None:
    """Return the verdict of this boot; none when KVM has been loaded or unloaded since."""
    try:
        data = json.loads(path.read_text())
        if any(data[name] != value for name, value in now.items()):
            return None
        return Accelerator(str(data["name"]), str(data["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _loaded(modules: Path) -> list[str]:
    """Return what there is of KVM in the kernel."""
    return [name for name in (*_OWN, *_OTHER) if (modules / name).exists()]


def probe() -> Accelerator:
    """Find out; never fails."""
    reason = unlikely(Path("/proc/cpuinfo"), MODULES)
    if reason:
        return Accelerator("tcg", reason)
    package = os.fspath(Path(__file__).parents[2])
    argv = [sys.executable, "-S", "-m", "pyvz.vm.kvmprobe"]
    try:
        answer = run(argv, env={"PYTHONPATH": package}, timeout=PATIENCE)
        seconds = float(answer.stdout)
    except Timeout:
        return Accelerator("tcg", "KVM runs guests, but far too slowly")
    except (CommandFailed, ValueError) as error:
        details = getattr(error, "details", "") or str(error)
        return Accelerator("tcg", f"KVM does not work: {details}")
    if seconds > LIMIT:
        return Accelerator("tcg", f"KVM emulates guests ({seconds:.2f} s for a small loop)")
    return Accelerator("kvm", "hardware virtualization works")


def unlikely(cpuinfo: Path, modules: Path) -> str:
    """Return why there can be no usable KVM, "" when there may be; reads text only."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        flags = None
    words = flags[1].split() if flags else []
    if "vmx" not in words and "svm" not in words:
        return "the processor shows no hardware virtualization (no vmx, no svm)"
    there = _loaded(modules)
    if there and not set(there) & set(_OWN):
        return "this KVM (kvm_pvm) runs only guests that were made for it"
    return ""
