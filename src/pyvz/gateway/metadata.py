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

NAME: Final = "libvirt.xml"
LIMIT: Final = 1 << 20  # bytes


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
        return parsed(file.read_text_limited(home / NAME, LIMIT), NAME)
    except (OSError, Failure):
        return Element("notes")


def save(home: Path, notes: Element) -> None:
    """Write the notes down; none at all leave no file."""
    if len(notes):
        file.write_atomic(home / NAME, tostring(notes, encoding="unicode"), 0o600)
    else:
        (home / NAME).unlink(missing_ok=True)


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
