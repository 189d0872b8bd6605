r"""`NAME="value"` files: vz.conf, ve.conf and their samples, read and rewritten without loss.

The file is a list of lines and stays one: what nobody changes is written back byte for byte
(comments, blank lines, order, quoting, CRLF, a missing last newline, unknown keys, garbage).  A
changed key is rewritten where it stands as ``NAME="value"``, a new one is appended.

How a line is read.  The original strips one pair of double quotes and drops a backslash before
any character (libvzctl, parse_line and unescapestr); action scripts read the very same file with
the shell's ``.``.  We read what both understand: a value in double quotes with backslash escapes,
in single quotes (verbatim), or bare; a comment may follow.  A missing closing quote is tolerated.

How a value is written.  In double quotes; backslash, quote, backtick and dollar are escaped by a
backslash, so that both readers get the value back and ``. $VE_CONFFILE`` in a script never runs
what a user put into a description.  Only the placeholder ``$VEID`` stays bare.  A value cannot
hold control characters but tab (a line is a line); those are refused.
One value the original alone misreads: an odd number of quotes followed by `` #``, because it takes
comments away after escapes; free text (DESCRIPTION) is stored as =XX and never looks like that.

Text is decoded as UTF-8 with surrogateescape, so that foreign bytes survive as well.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyvz.errors import BadValue

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.%-]*")
_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.%-]*)=(.*)", re.DOTALL)
# By runs of plain characters: one at a time takes 2 ms for a thousand addresses.
_DOUBLE = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"([ \t]*(?:#.*)?)', re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'([ \t]*(?:#.*)?)", re.DOTALL)
_BARE = re.compile(r"(.*?)([ \t]+(?:#.*)?)?", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(r'[\\"`]|\$(?!VEID\b|\{VEID\})')
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class _Line(NamedTuple):
    """One line: the text without its ending, and what was understood of it."""

    text: str
    ending: str
    key: str = ""  # "" = comment, blank or garbage
    value: str = ""
    tail: str = ""  # blanks and comment after the value
    garbage: bool = False


class Problem(NamedTuple):
    """A line that could not be understood; it is kept as it is."""

    line: int  # from 1
    text: str


class ConfFile:
    """One configuration file in memory.  Mutable; made by parse(), written by render()."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._last: dict[str, int] = {}  # key -> index of the line that counts

    @classmethod
    def parse(cls, text: str) -> ConfFile:
        """Return the file that TEXT is.  Never fails: see problems()."""
        made = cls()
        made._lines = [_read_line(raw) for raw in _split(text)]
        made._index()
        return made

    def copy(self) -> ConfFile:
        """Return an independent copy."""
        made = ConfFile()
        made._lines = list(self._lines)
        made._last = dict(self._last)
        return made

    def get(self, key: str) -> str | None:
        """Return the value of KEY (its last occurrence), or None when it is not there."""
        index = self._last.get(key)
        return None if index is None else self._lines[index].value

    def values(self) -> dict[str, str]:
        """Return every key with its value, in the order of the file."""
        return {key: self._lines[index].value for key, index in self._last.items()}

    def set(self, key: str, value: str | None) -> None:
        """Give KEY the VALUE; None or "" drops every occurrence, as the original does.

        A key that has this value already is left untouched.  Raises BadValue for a value that no
        line can hold.
        """
        if not _KEY.fullmatch(key):
            raise BadValue(f"'{key}' is not the name of a parameter")
        if not value:
            self._lines = [line for line in self._lines if line.key != key]
            self._index()
            return
        if self.get(key) == value:
            return
        text = f'{key}="{escape(key, value)}"'
        index = self._last.get(key)
        if index is None:
            self._append(_Line(text, self._ending(), key, value))
        else:
            old = self._lines[index]
            self._lines[index] = _Line(text + old.tail, old.ending, key, value, old.tail)

    def render(self) -> str:
        """Return the text of the file."""
        return "".join(line.text + line.ending for line in self._lines)

    def problems(self) -> list[Problem]:
        """Return the lines that are neither blank, comment nor assignment."""
        return [Problem(n, x.text) for n, x in enumerate(self._lines, start=1) if x.garbage]

    def line_of(self, key: str) -> int | None:
        """Return the number (from 1) of the line that gives KEY its value."""
        index = self._last.get(key)
        return None if index is None else index + 1

    def _index(self) -> None:
        self._last = {line.key: n for n, line in enumerate(self._lines) if line.key}

    def _ending(self) -> str:
        """Return the line ending that this file uses."""
        return next((line.ending for line in self._lines if line.ending), "\n")

    def _append(self, line: _Line) -> None:
        if self._lines and not self._lines[-1].ending:
            self._lines[-1] = self._lines[-1]._replace(ending=self._ending())
        self._lines.append(line)
        self._last[line.key] = len(self._lines) - 1


def escape(key: str, value: str) -> str:
    """Return VALUE as it stands between double quotes; BadValue for control characters."""
    if found := _CONTROL.search(value):
        raise BadValue(
            f"the value of {key} holds the control character {found.group()!r}",
            hint="A parameter is one line of text.",
        )
    return _TO_ESCAPE.sub(lambda match: "\\" + match.group(), value)


def _split(text: str) -> list[str]:
    """Split at newlines only (str.splitlines would also split at form feeds and U+2028)."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _read_line(raw: str) -> _Line:
    ending = ""
    if raw.endswith("\n"):
        ending = "\r\n" if raw.endswith("\r\n") else "\n"
    text = raw[: len(raw) - len(ending)]
    match = _ASSIGNMENT.fullmatch(text)
    if match:
        value, tail = _read_value(match.group(2))
        return _Line(text, ending, match.group(1), value, tail)
    stripped = text.strip()
    return _Line(text, ending, garbage=bool(stripped) and not stripped.startswith("#"))


def _read_value(text: str) -> tuple[str, str]:
    """Return (value, what follows it) of the part after the equals sign."""
    if text.startswith('"'):
        if match := _DOUBLE.fullmatch(text):
            return _unescape(match.group(1)), match.group(2)
        # No proper closing quote: what the original makes of it.
        return _unescape(text[1:].rstrip().removesuffix('"')), ""
    if text.startswith("'") and (match := _SINGLE.fullmatch(text)):
        return match.group(1), match.group(2)
    match = _BARE.fullmatch(text)
    bare, tail = (match.group(1), match.group(2) or "") if match else (text, "")
    return _unescape(bare.removesuffix('"')), tail


def _unescape(text: str) -> str:
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text
