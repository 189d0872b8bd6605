"""Says how many seconds KVM needs for a small loop: a program of its own, which may be killed.

They are the processor's, and the best of several tries: what a busy node does meanwhile does not
count, nor what a hypervisor below this node takes from it, which nobody sees here.

python -S -m pyvz.vm.kvmprobe      prints the seconds; exit status 1 and a reason without KVM
"""

from __future__ import annotations

import sys
import time

from pyvz.linux.syscall_kvm import seconds_of_loop

LIMIT = 0.05  # seconds of the processor for the loop: real KVM needs less than one millisecond
_TRIES = 3  # at least; the first one also pays for what KVM makes when it is first used
_PATIENCE = 3.0  # seconds for more


def best() -> float:
    """Return the seconds of the best of several tries; one within the limit ends them."""
    began = time.monotonic()
    found: list[float] = []
    while len(found) < _TRIES or time.monotonic() < began + _PATIENCE:
        found.append(seconds_of_loop())
        if found[-1] <= LIMIT:
            break
    return min(found)


def main() -> int:
    """Print the seconds."""
    try:
        sys.stdout.write(f"{best():.6f}\n")
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
