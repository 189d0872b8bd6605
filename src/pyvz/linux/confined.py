"""Runs a program that can see a container's tree, the system's programs, and nothing else.

    python -m pyvz.linux.confined [--gate] [--as NAME] TREE STATE PROGRAM ARGUMENT...

The tree is /NAME (/tree); STATE, a directory of ours, is /state ("-": none); /usr and what belongs
to it are there, read-only.  A tree is its guest's: links in it, and directories that become links
while they are read, lead to nothing of the node from here.  --gate: PROGRAM is executed when stdin
ends.  A program of its own, as it changes its mount namespace and root.
Exit status: that of the program; 125: the view could not be made (the reason is on stderr).
"""

from __future__ import annotations

import os
import sys

from pyvz.linux import view


def main(argv: list[str]) -> int:
    """Make the view, become the program."""
    if gate := argv[:1] == ["--gate"]:
        del argv[0]
    name = "tree"
    if argv[:1] == ["--as"]:
        name = argv[1]
        del argv[:2]
    tree, state, *program = argv
    try:
        view.enter({name: tree} | ({"state": state} if state != "-" else {}))
        os.chdir(f"/{name}")
        if gate:
            os.read(0, 1)
        os.execv(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
