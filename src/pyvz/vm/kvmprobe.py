"""Says how many seconds KVM needs for a small loop: a program of its own, which may be killed.

python -S -m pyvz.vm.kvmprobe      prints the seconds; exit status 1 and a reason without KVM
"""

from __future__ import annotations

import sys

from pyvz.linux.syscall_kvm import seconds_of_loop


def main() -> int:
    """Print the seconds."""
    try:
        # On a busy node something else may have run in the meantime: the better of two counts.
        sys.stdout.write(f"{min(seconds_of_loop(), seconds_of_loop()):.6f}\n")
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
