"""Runs a program on a stranger's disk image, where it sees that and one directory, and little else.

    python -S -m pyvz.vm.secluded SOURCE DIRECTORY BYTES PROGRAM ARGUMENT...

SOURCE is /in, read-only; DIRECTORY is /out ("-": none), where files may grow to BYTES.  There is no
network, no other process and no device; of root's capabilities only the one to read and write what
it is shown is left.  So an image that breaks its reader, or names other files, gains nothing.
Exit status: that of the program; 125: it could not be run (the reason is on stderr).
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from pyvz.linux import syscall, view

_NAMESPACES = (
    syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
)
_MEMORY = 4 << 30  # bytes of address space; qemu-img takes some hundred MiB
_CAP_DAC_OVERRIDE = 1


def main(argv: list[str]) -> int:
    """Make the view, run the program in it."""
    source, directory, size, *program = argv
    try:
        syscall.unshare(_NAMESPACES)
        view.enter(
            {"in": source} | ({"out": directory} if directory != "-" else {}), readonly=("in",)
        )
        child = os.fork()
        if child == 0:
            _become(program, int(size))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    return 125


def _become(program: list[str], size: int) -> None:
    """Execute the program, the first process of its namespace; never returns."""
    try:
        syscall.set_parent_death_signal(signal.SIGKILL)
        for limit, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_AS, _MEMORY),
            (resource.RLIMIT_FSIZE, size),
        ):
            resource.setrlimit(limit, (value, value))
        _drop_capabilities()
        syscall.set_no_new_privs()
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    os._exit(125)


def _drop_capabilities() -> None:
    for number in range(64):
        try:
            if number != _CAP_DAC_OVERRIDE and syscall.bounding_has(number):
                syscall.drop_bounding(number)
        except OSError:
            break  # the kernel knows no more of them
    mask = 1 << _CAP_DAC_OVERRIDE
    syscall.capset(mask, mask, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
