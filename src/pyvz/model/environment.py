"""The identity of an environment: a container or a virtual machine."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from pyvz.errors import BadValue

MAX_LEGACY_CTID = 2147483644  # vzctl 4, include/types.h: VEID_MAX
NOTES = "libvirt.xml"  # in the home: what libvirt's clients have noted (gateway/notes.py)
_NAME = re.compile(r"[A-Za-z0-9+\-_.{} \x80-\U0010ffff]{1,255}")


class Kind(StrEnum):
    """What an environment is; the values are the words of `--vmtype`."""

    CT = "ct"
    VM = "vm"

    @property
    def conf_name(self) -> str:
        """The name of the configuration file in the home; it also tells the kind (registry.py)."""
        return "vm.conf" if self is Kind.VM else "ve.conf"


class Environment(NamedTuple):
    """One registered environment (a NamedTuple: `list` makes hundreds of them).

    uuid: canonical lower-case text without braces; names the private area and all run state.
    envid: the legacy numeric CTID as text where it has one, else the UUID again.
    name: what users call it; unique on the node.
    home: the directory that is the environment (VE_PRIVATE of a container).
    """

    uuid: str
    envid: str
    name: str
    kind: Kind
    home: Path

    @property
    def conf(self) -> Path:
        """The configuration file in its home."""
        return self.home / self.kind.conf_name


def canonical_uuid(text: str) -> str | None:
    """Return TEXT as lower-case UUID without braces, or None when it is not a UUID."""
    bare = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    if len(bare) != 36:
        return None
    try:
        return str(UUID(bare))
    except ValueError:
        return None


def check_name(name: str) -> str:
    """Return NAME when an environment may be called so; raise BadValue otherwise.

    Source: libvzctl, vzctl2_is_name_valid: letters, digits, space, "+-_.{}" and non-ASCII.
    A name may not look like a path or an option.
    """
    if (
        not _NAME.fullmatch(name)
        or name in {".", ".."}
        or name.startswith("-")
        or name != name.strip()
    ):
        raise BadValue(
            f"'{name}' is not a valid name",
            hint="Use letters, digits, space and + - _ . { }; do not begin with a dash or a space.",
        )
    return name


def is_legacy_ctid(text: str) -> bool:
    """Whether TEXT is a numeric container id of the old kind (1 to 2147483644)."""
    return text.isascii() and text.isdigit() and 0 < int(text) <= MAX_LEGACY_CTID
