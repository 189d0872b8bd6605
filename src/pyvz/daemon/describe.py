"""Writes the interfaces of the API as Varlink text.

    python -m pyvz.daemon.describe [--check] [DIR]      (DIR: docs/varlink)

The text is made from the types of the methods, so it cannot differ from what vzd does; a test
proves that the files are current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyvz.daemon.replies import ErrorInterface
from pyvz.daemon.service import INTERFACES


def descriptions() -> dict[str, str]:
    """Return the text of each interface by its name."""
    return {
        interface.name: _wrapped(interface.render_interface_description()) + "\n"
        for interface in (*INTERFACES, ErrorInterface)
    }


def _wrapped(text: str) -> str:
    """Put the fields of a long line each on a line of its own (white space means nothing)."""
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line if len(line) <= 100 else _spread(line) for line in lines)


def _spread(line: str) -> str:
    """Break a line after every comma and parenthesis of its outermost level."""
    if line.startswith("#"):
        return line
    made = ""
    depth = 0
    for character in line:
        if character == ")":
            depth -= 1
            made += "\n" if depth == 0 else ""
        made += character
        if character == "(":
            depth += 1
            made += "\n  " if depth == 1 else ""
        if character == "," and depth == 1:
            made += "\n "
    return made.replace("(\n  \n)", "()")


def main(arguments: list[str]) -> int:
    """Write the files; with --check only tell which differ (status 1)."""
    check = "--check" in arguments
    places = [each for each in arguments if not each.startswith("-")]
    folder = Path(places[0] if places else "docs/varlink")
    differ = 0
    for name, text in descriptions().items():
        path = folder / f"{name}.varlink"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        differ += 1
        sys.stdout.write(f"{path}\n")
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(check and differ > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
