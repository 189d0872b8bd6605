"""What clients note about a domain and we only keep: a title, and XML of their own.

<home>/libvirt.xml      <notes> with <title> and <metadata>; absent where nobody noted anything

The description is DESCRIPTION of ve.conf, as `prlctl set --description` gives it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from pyvz.gateway import failure
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.linux import file
from pyvz.model.environment import NOTES

LIMIT: Final = 1 << 20  # bytes
DESCRIPTION, TITLE, ELEMENT = range(3)  # kinds of metadata


def parsed(text: str, what: str) -> Element:
    """Return XML that a client sent; raises Failure (27) for what is none, or dangerous."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Failure(failure.XML, f"The {what} cannot be understood: {error}") from error
    return root


def load(home: Path) -> Element:
    """Return the notes about a domain; empty ones where there are none or they are damaged."""
    try:
        return parsed(file.read_text_limited(home / NOTES, LIMIT), NOTES)
    except (OSError, Failure):
        return Element("notes")


def save(home: Path, notes: Element) -> None:
    """Write the notes down; none at all leave no file."""
    if len(notes):
        file.write_atomic(home / NOTES, tostring(notes, encoding="unicode"), 0o600)
    else:
        (home / NOTES).unlink(missing_ok=True)


def add(top: Element, domain: Domain) -> None:
    """Put what was noted into a description."""
    notes = load(domain.env.home)
    title, kept = notes.find("title"), notes.find("metadata")
    if title is not None:
        SubElement(top, "title").text = title.text
    if domain.config.identity.description:
        SubElement(top, "description").text = domain.config.identity.description
    if kept is not None:
        top.append(kept)


def replace(home: Path, title: str, kept: Element | None) -> None:
    """Note what a whole description says; what it leaves out is noted no more."""
    notes = Element("notes")
    if title:
        SubElement(notes, "title").text = title
    if kept is not None:
        notes.append(kept)
    save(home, notes)


def change(home: Path, kind: int, text: str | None, name: tuple[str, str]) -> None:
    """Note a title (1), or an element of the client's own (2) under (prefix, URI); None: no more.

    Raises Failure.
    """
    notes = load(home)
    if kind == TITLE:
        for each in notes.findall("title"):
            notes.remove(each)
        if text:
            SubElement(notes, "title").text = text
    elif kind == ELEMENT and name[1]:
        _change_element(notes, text, name[1])
    else:
        raise Failure(failure.INVALID_ARGUMENT, f"Metadata of the type {kind} does not exist")
    save(home, notes)


def noted(found: Domain, kind: int, uri: str) -> str:
    """Return a description (0), a title (1), or the element under an URI (2); "" for none."""
    if kind == DESCRIPTION:
        return found.config.identity.description or ""
    notes = load(found.env.home)
    if kind == TITLE:
        return notes.findtext("title") or ""
    kept = notes.find("metadata")
    for each in kept if kept is not None else ():
        if each.tag.startswith(f"{{{uri}}}"):
            return tostring(each, encoding="unicode")
    return ""


def _change_element(notes: Element, text: str | None, uri: str) -> None:
    kept = notes.find("metadata")
    kept = SubElement(notes, "metadata") if kept is None else kept
    for each in [each for each in kept if each.tag.startswith(f"{{{uri}}}")]:
        kept.remove(each)
    if text:
        element = parsed(text, "metadata")
        element.tag = f"{{{uri}}}{element.tag.rpartition('}')[2]}"
        kept.append(element)
    if len(kept) == 0:
        notes.remove(kept)
