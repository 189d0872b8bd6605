"""What CRIU's log says, in words, and what can be done about it.

CRIU answers a failure with the first line of the log that was an error, which is mostly a harmless
one; what happened is in the log file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_LIMIT = 16 << 20  # bytes of a log that are looked at, from its end
_LINE = re.compile(r"^\([ \d.]+\) *(?:\d+: )?(Error \((\S+?)\): (.*))$", re.MULTILINE)
# Told in every log of a node without CAP_SYS_RESOURCE, or only the echo of something else.
_HARMLESS = (
    "Can't setup RLIMIT_NOFILE",
    "Failed to send interrupt",
    "Dumping FAILED",
    "Restoring FAILED",
    "post-dump script",
    "Post dump script",
    "Unable to open the core-pattern",
    "cgroupd: recv req",
)


class Words(NamedTuple):
    """why: one line for people.  line: what the log says.  hint: what to do, may be empty.

    passing: another dump a moment later is likely to succeed.
    """

    why: str
    line: str
    hint: str
    passing: bool = False


class _Known(NamedTuple):
    pattern: str
    why: str
    hint: str = ""
    passing: bool = False


_KNOWN = (
    _Known(r"nested (uts|ipc|pid|user|time) namespace",
           "a program in it has made a namespace of its own (nested containers?)",
           "Stop what runs nested containers or sandboxes in it (--features nesting:off)."),
    _Known(r"FS mnt .* (\S+) unsupported|Can't find fs type|fstype .* (is )?unsupported",
           "a file system that cannot be saved is mounted in it (FUSE, NFS or the like)",
           "Unmount it in the container."),
    _Known(r"image\.c.*Unable to open", "an image of its memory cannot be opened"),
    _Known(r"fuse", "a FUSE file system is mounted in it", "Unmount it in the container."),
    _Known(r"doesn't have a proper root mount|Mount .* is not (reachable|unsupported)",
           "something of the node is mounted in it that pyvz has not mounted",
           "Unmount it (mount in the container shows it), or restart the container."),
    _Known(r"Can't lookup mount=\d+ for fd",
           "a program in it holds a file of the node open (an exec session that went on?)",
           "End that program, or restart the container."),
    _Known(r"ghost file|Can't dump ghost", "a file that was deleted but is still open is too large",
           "Have the program that holds it close it (lsof +L1 in the container shows it)."),
    _Known(r"Can't dump (in-flight|half).*|in-flight connection|inet: Connected .* pending",
           "a connection was just being made", "Try again.", passing=True),
    # systemd since 257 asks for the sender's pidfd (SO_PASSPIDFD), which CRIU cannot save.
    _Known(r"Control messages in queue",
           "a message with a credential or a file was just on its way from one program to another",
           "Try again.", passing=True),
    _Known(r"parse_fdinfo_pid_s: error parsing \[inotify",
           "a file system that a program watches was just being frozen or thawed",
           "Try again.", passing=True),
    _Known(r"sk unix: Can't dump|External socket|unix: (Unix )?[Ss]ocket .* without peer",
           "a socket in it leads out of the container", "End what holds it, or restart it."),
    _Known(r"Can't dump .*(bpf|BPF)|bpf", "a BPF program or map is open in it",
           "End the program that uses it."),
    _Known(r"io_uring|anon_inode:\[io_uring\]", "a program in it uses io_uring",
           "Configure it not to (for PostgreSQL 18: io_method=worker)."),
    _Known(r"Can't dump (the )?(handle|that handle)|fsnotify", "a watch on a file cannot be saved",
           "End the program that watches files, or try again."),
    _Known(r"[Nn]o space left|ENOSPC|errno 28", "the disk is full", "Make room and try again."),
    _Known(r"Cannot allocate memory|errno 12", "the node has not enough memory free"),
    _Known(r"(Can't|Failed to|Unable to) bind inet socket|Can't bind",
           "an address that it had is not there any more",
           "Give it back the addresses that it had when it was suspended."),
    _Known(r"Unable to open .*|File .* has bad (size|mode)|Can't open file",
           "a file that was open in it is missing or has changed since",
           "Its disk must be as it was when it was suspended."),
    _Known(r"cpu:.*(mismatch|feature|not supported)|CPU .* (mismatch|features)",
           "this processor lacks features that programs in it use",
           "Restore it on the node where it was suspended, or one with the same processor."),
    _Known(r"Pid \d+ do not match|Can't (fork|restore) .* pid|pid .* already exists",
           "the number of one of its processes is in use"),
    _Known(r"cgroup", "its control groups could not be dealt with"),
    _Known(r"timeout|Timeout|freez", "its processes did not come to a halt in time", "Try again."),
)  # fmt: skip


def explain(log: Path) -> Words:
    """Return what a log tells of the failure."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LIMIT))
            text = file.read().decode(errors="replace")
    except OSError:
        return Words("CRIU has left no log", "", "")
    return explain_text(text)


def explain_text(text: str) -> Words:
    """Return what the text of a log tells: its first error that matters decides."""
    lines = [match[1] for match in _LINE.finditer(text)]
    lines = [line for line in lines if not any(word in line for word in _HARMLESS)]
    if not lines:
        return Words("CRIU does not say why", "", "")
    for line in lines:
        for known in _KNOWN:
            if re.search(known.pattern, line):
                return Words(known.why, line, known.hint, known.passing)
    return Words(f"CRIU says: {lines[0].partition('): ')[2]}", lines[0], "")
