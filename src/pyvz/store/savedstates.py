"""Snapshots.xml: the tree of a container's snapshots, and at which of them it is.

    <VirtuozzoSavedStates>
      <SavedStateItem guid="">                            unnamed, always one
        <Name/> <DateTime/> <Creator/> <ScreenShot/> <Description/>
        <SavedStateItem guid="{...}" current="yes" state="poweroff">
          <Name>...                                       nesting is parentage

The file may come from anywhere with a container's home: DTDs and entities are refused, sizes are
bounded, every id is one.  Source: libvzctl lib/xml.c, lib/snapshot.c; `state` and the element
ScreenShot are prlctl's (PrlSnapshot.cpp).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from pyvz.errors import AlreadyExists, BadValue, SnapshotNotFound, StorageError
from pyvz.linux import file
from pyvz.model.environment import canonical_uuid

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NAME = "Snapshots.xml"
POWEROFF = "poweroff"  # the state of a snapshot that has a disk and no memory
POWERON = "poweron"  # the state of one that has both

_LIMIT = 8 << 20  # bytes
_MAX_SNAPSHOTS = 4096
_MAX_NAME, _MAX_DESCRIPTION = 1024, 65536  # characters
_MAX_INDENT = 30  # levels, as in libxml2: a chain of thousands would be mostly blanks
_ROOT, _ITEM = "VirtuozzoSavedStates", "SavedStateItem"


class SavedState(NamedTuple):
    """One snapshot.  guid, parent: with braces, parent "" for one that has none.

    date: "YYYY-MM-DD HH:MM:SS", local time.  state: "poweroff", or what others wrote.
    """

    guid: str
    parent: str = ""
    name: str = ""
    date: str = ""
    description: str = ""
    state: str = ""
    creator: str = ""
    screenshot: str = ""


class SavedStates(NamedTuple):
    """All snapshots of a container, parents before children; current: a guid, or ""."""

    items: tuple[SavedState, ...] = ()
    current: str = ""

    def get(self, guid: str) -> SavedState:
        """Return a snapshot; raises SnapshotNotFound, BadValue."""
        wanted = braced(guid)
        for item in self.items:
            if item.guid == wanted:
                return item
        raise SnapshotNotFound(f"Unable to find snapshot by uuid {wanted}")

    def has(self, guid: str) -> bool:
        """Whether there is such a snapshot."""
        return any(item.guid == guid for item in self.items)

    def children(self, guid: str) -> tuple[SavedState, ...]:
        """Return the snapshots directly below one ("" for those without a parent)."""
        return tuple(item for item in self.items if item.parent == guid)

    def subtree(self, guid: str) -> tuple[SavedState, ...]:
        """Return a snapshot and all below it, parents first."""
        found = {self.get(guid).guid}
        for item in self.items:
            if item.parent in found:
                found.add(item.guid)
        return tuple(item for item in self.items if item.guid in found)

    def with_snapshot(self, item: SavedState) -> SavedStates:
        """Add a snapshot below the current one; it becomes the current one.

        Raises AlreadyExists, BadValue.
        """
        if self.has(item.guid):
            raise AlreadyExists(f"Invalid guid {item.guid} is specified: already exist")
        if len(self.items) >= _MAX_SNAPSHOTS:
            raise BadValue(f"A container cannot have more than {_MAX_SNAPSHOTS} snapshots")
        check_text(item.name, "name", _MAX_NAME)
        check_text(item.description, "description", _MAX_DESCRIPTION)
        return SavedStates((*self.items, item._replace(parent=self.current)), item.guid)

    def without(self, guid: str) -> SavedStates:
        """Take one snapshot out; those below it move up to its parent, which becomes current
        where the one taken out was.
        """
        gone = self.get(guid)
        items = tuple(
            item._replace(parent=gone.parent) if item.parent == gone.guid else item
            for item in self.items
            if item.guid != gone.guid
        )
        return SavedStates(items, gone.parent if self.current == gone.guid else self.current)

    def without_subtree(self, guid: str) -> SavedStates:
        """Take a snapshot out with all below it."""
        top = self.get(guid)
        gone = {item.guid for item in self.subtree(guid)}
        items = tuple(item for item in self.items if item.guid not in gone)
        return SavedStates(items, top.parent if self.current in gone else self.current)

    def described(self, guid: str, name: str, description: str) -> SavedStates:
        """Give a snapshot other texts; raises SnapshotNotFound, BadValue."""
        check_text(name, "name", _MAX_NAME)
        check_text(description, "description", _MAX_DESCRIPTION)
        old = self.get(guid)
        new = old._replace(name=name, description=description)
        items = tuple(new if item == old else item for item in self.items)
        return self._replace(items=items)

    def switched(self, guid: str) -> SavedStates:
        """Make a snapshot the current one."""
        return self._replace(current=self.get(guid).guid)

    def render(self) -> str:
        """Return the text of the file, as libxml2 indents it."""
        lines = ['<?xml version="1.0"?>', f"<{_ROOT}>"]
        if self.items:
            lines += _opened("", SavedState(""), current=False)
            lines += self._nested()
            lines.append(f"  </{_ITEM}>")
        return "\n".join([*lines, f"</{_ROOT}>", ""])

    def _nested(self) -> Iterator[str]:
        """Yield the lines of all snapshots; no recursion, a chain may be long."""
        below: dict[str, list[SavedState]] = {}
        for item in self.items:
            below.setdefault(item.parent, []).append(item)
        stack: list[SavedState | str] = [*reversed(below.get("", []))]
        depth = 1
        while stack:
            at = stack.pop()
            if isinstance(at, str):
                yield "  " * min(depth, _MAX_INDENT) + at
                depth -= 1
                continue
            depth += 1
            indent = "  " * min(depth - 1, _MAX_INDENT)
            yield from _opened(indent, at, current=at.guid == self.current)
            stack += [f"</{_ITEM}>", *reversed(below.get(at.guid, []))]


def _opened(indent: str, item: SavedState, *, current: bool) -> list[str]:
    """Return the lines of an item up to its children."""
    indent += "  "
    attributes = f"guid={quoteattr(item.guid)}"
    attributes += ' current="yes"' if current else ""
    attributes += f" state={quoteattr(item.state)}" if item.state else ""
    texts = {
        "Name": escape(item.name),
        "DateTime": escape(item.date),
        "Creator": escape(item.creator),
        "ScreenShot": escape(item.screenshot),
        "Description": _cdata(item.description),
    }
    fields = [f"<{name}>{text}</{name}>" if text else f"<{name}/>" for name, text in texts.items()]
    return [f"{indent}<{_ITEM} {attributes}>", *(f"{indent}  {field}" for field in fields)]


def _cdata(text: str) -> str:
    return f"<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>" if text else ""


def new_item(guid: str, name: str, description: str, *, state: str = POWEROFF) -> SavedState:
    """Return a snapshot that is made now."""
    date = time.strftime("%F %T")
    return SavedState(braced(guid), "", name, date, description, state)


def braced(text: str) -> str:
    """Return an id as the files spell it, {lower case}; raises BadValue."""
    uuid = canonical_uuid(text)
    if uuid is None:
        raise BadValue(f"Invalid guid is specified: {text[:80]}")
    return f"{{{uuid}}}"


def check_text(text: str, what: str, limit: int) -> None:
    """Raise BadValue for a text that XML cannot hold (https://www.w3.org/TR/xml/#charsets)."""
    if len(text) > limit:
        raise BadValue(f"The {what} of a snapshot cannot have more than {limit} characters")
    if any(not _allowed(char) for char in text):
        raise BadValue(f"The {what} of a snapshot has a character that cannot be kept")


def _allowed(char: str) -> bool:
    code = ord(char)
    if code < 0x20:
        return char in "\t\n"  # a carriage return would come back as a newline
    return not (code == 0x7F or 0xD800 <= code <= 0xDFFF or code in {0xFFFE, 0xFFFF})


def load(home: Path) -> SavedStates:
    """Return the snapshots of the container in `home`; none without a file.

    Raises StorageError that names the file and what is wrong in it.
    """
    path = home / NAME
    try:
        if path.is_symlink():
            raise StorageError(f"{path} is a symbolic link")
        text = file.read_text_limited(path, limit=_LIMIT)
    except FileNotFoundError:
        return SavedStates()
    try:
        return parse(text)
    except StorageError as error:
        raise StorageError(f"Failed to read {path}: {error.message}") from error


def save(home: Path, states: SavedStates) -> None:
    """Put the file in place, whole and at once."""
    file.write_atomic(home / NAME, states.render(), 0o644)


@functools.lru_cache(maxsize=64)  # one verb asks several times, a tree of 100 takes ms
def parse(text: str) -> SavedStates:
    """Return the snapshots that a text tells of; raises StorageError."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(text, forbid_dtd=True)
    except DefusedXmlException as error:
        raise StorageError("it has a DTD or entities, which no list of snapshots has") from error
    except (SyntaxError, ValueError, LookupError) as error:  # ParseError is a SyntaxError
        raise StorageError(f"it is not well-formed XML: {error}") from error
    if root.tag != _ROOT:
        raise StorageError(f"it is no list of snapshots: its root is <{root.tag[:80]}>")
    top = root.find(_ITEM)
    return SavedStates() if top is None else _read(top)


def _read(top: Element) -> SavedStates:
    """Walk the items, parents before children."""
    items: list[SavedState] = []
    seen: set[str] = set()
    current = ""
    pool = [(top, "")]
    while pool:
        following = []
        for element, guid in pool:
            for child in element.findall(_ITEM):
                item = _item(child, guid)
                if item.guid in seen or len(items) >= _MAX_SNAPSHOTS:
                    raise StorageError(f"it names {item.guid} twice, or far too many snapshots")
                seen.add(item.guid)
                items.append(item)
                if child.get("current", "").lower() == "yes":
                    current = item.guid
                following.append((child, item.guid))
        pool = following
    return SavedStates(tuple(items), current)


def _item(element: Element, parent: str) -> SavedState:
    uuid = canonical_uuid(element.get("guid", ""))
    if uuid is None:
        raise StorageError(f"{element.get('guid', '')[:80]!r} is not the id of a snapshot")

    def text(name: str, limit: int = _MAX_NAME) -> str:
        found = element.findtext(name) or ""
        return "".join(char for char in found[:limit] if _allowed(char))

    return SavedState(
        guid=f"{{{uuid}}}",
        parent=parent,
        name=text("Name"),
        date=text("DateTime"),
        description=text("Description", _MAX_DESCRIPTION),
        state="".join(char for char in element.get("state", "")[:64] if _allowed(char)),
        creator=text("Creator"),
        screenshot=text("ScreenShot"),
    )
