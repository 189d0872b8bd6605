"""What a virtual machine may use of the node: the limits of its QEMU."""

from __future__ import annotations

from pyvz.model.config import Config
from pyvz.model.config_limits import cpu_percent, limits_of
from pyvz.model.limits import UNLIMITED, Limits
from pyvz.units import MIB
from pyvz.vm.memorylock import STACK
from pyvz.vm.spec import OVERHEAD, TRANSLATION_CACHE, MachineSpec

THREADS = 256  # of QEMU beside the CPUs: I/O workers, VNC, migration


def of(config: Config, spec: MachineSpec, *, cpus: int) -> Limits:
    """Return the limits of a machine.

    The memory is the guest's, with what may be plugged in, and room for QEMU itself: a guest that
    makes QEMU grow harms nobody else.  The number of CPUs is no quota here: QEMU has threads
    beside them.
    """
    free = config.changed({"cpu.cpus": None})
    extra = OVERHEAD + spec.video * MIB + spec.memory * MIB // 16
    extra += TRANSLATION_CACHE * MIB if spec.accelerator == "tcg" else 0
    extra += STACK * (THREADS + spec.max_cpus) if spec.memory_lock else 0
    return limits_of(config, cpus=cpus)._replace(
        memory=spec.max_memory * MIB + extra,
        swap=UNLIMITED,
        cpu_percent=cpu_percent(free, cpus=cpus),
        pids=THREADS + spec.max_cpus,
    )
