"""Becomes QEMU: joins the machine's control groups, becomes its own user, executes it.

    python -S -m pyvz.vm.launch DESCRIPTOR

DESCRIPTOR is open for reading and holds JSON: argv, procs (cgroup files to write us into), uid,
groups, memlock.  A program of its own, so that everything that QEMU does is counted and confined
from its first instruction, and because a process with threads may not do this after a fork.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from pyvz.linux import syscall


def main(argv: list[str]) -> None:
    """Do it; a failure is told on standard error, which is the machine's log."""
    with os.fdopen(int(argv[0]), "rb") as file:
        request = json.load(file)
    for path in request["procs"]:
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    os.umask(0o077)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["memlock"]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (request["memlock"], request["memlock"]))
    os.setgroups(request["groups"])
    os.setresgid(request["uid"], request["uid"], request["uid"])
    os.setresuid(request["uid"], request["uid"], request["uid"])
    syscall.set_no_new_privs()
    words = request["argv"]
    os.execvpe(words[0], words, request["env"])  # noqa: S606  a list, from us


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"pyvz: {error.strerror or error}: {error.filename or ''}\n")
        sys.exit(125)
