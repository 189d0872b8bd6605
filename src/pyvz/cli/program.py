"""How each of our tools runs: one door for errors, Ctrl-C, a broken pipe and defects.

    def main(argv):
        return run("prlctl", dispatch, argv)

`dispatch(argv)` returns the exit code or raises.  What the user reads is one line on stderr, then
indented details, then a `hint:` line.
"""

from __future__ import annotations

import os
import sys

from pyvz.cli.exitcodes import INTERNAL, INTERRUPTED, exit_code
from pyvz.errors import VZError

INTERNAL_OUTPUT = 120  # Python's own for output that could not be written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn


def run(program: str, dispatch: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Run DISPATCH and return the exit code for whatever it does or raises."""
    _open_standard_files()
    words = list(argv)
    debug = "--debug" in words
    _lenient_output()
    try:
        code = dispatch(words)
        sys.stdout.flush()
    except VZError as error:
        if debug:
            _traceback()
        tell(error)
        return exit_code(program, error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`vzlist | head`): no message, and nothing more to that pipe when
        # the interpreter flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:  # noqa: BLE001  the outermost loop: a defect of ours
        return _defect(program, error, debug=debug)
    return code


def leave(code: int) -> NoReturn:
    """End the process with CODE at once, everything written.

    What Python takes apart at its end is a fifth of the time that a command line lives.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: closed
        code = code or INTERNAL_OUTPUT
    os._exit(code)


def _open_standard_files() -> None:
    """Put /dev/null where the parent left 0, 1 or 2 closed: no descriptor of ours may get there."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _lenient_output() -> None:
    """Names may hold any bytes: write back what cannot be decoded as it came."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="surrogateescape")


def tell(error: VZError, before: str = "") -> None:
    """Print an error on stderr: BEFORE and the message, indented details, the hint."""
    sys.stdout.flush()
    lines = [before + (error.message or type(error).__name__)]
    lines += ["  " + line for line in error.details.splitlines()]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    sys.stderr.write("\n".join(lines) + "\n")


def failed(verb: str, error: VZError) -> VZError:
    """Return ERROR worded as the original does: "Failed to start the CT: <message>"."""
    error.message = f"Failed to {verb}: {error.message}"
    return error


def _defect(program: str, error: Exception, *, debug: bool) -> int:
    """Tell of a defect of ours, with the place of its traceback."""
    if debug:
        _traceback()
    path = _record(program)
    kind = type(error).__name__
    sys.stderr.write(f"{program}: internal error: {kind}: {error}\n")
    sys.stderr.write(f"hint: see {path}\n" if path else "hint: run it again with --debug\n")
    return INTERNAL[program]


def _record(program: str) -> str:
    """Append the traceback to the log; return its path, or "" when it cannot be written."""
    import traceback  # noqa: PLC0415  only for a defect

    root = os.environ.get("PYVZ_ROOT") or "/"
    path = os.path.join(root, "var/log/pyvz/cli.log")
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{program} pid {os.getpid()}: {sys.argv[1:2]}\n{traceback.format_exc()}\n")
    except OSError:
        return ""
    return path


def _traceback() -> None:
    import traceback  # noqa: PLC0415  only with --debug

    traceback.print_exc()
