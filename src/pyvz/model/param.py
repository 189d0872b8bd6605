"""One parameter and its options: the shape of the rows of the one table (params.py).

A row drives ve.conf, ``prlctl set``, ``vzctl set``, ``vzlist -o``, the checks of the API and the
man pages.  In option names ``-`` and ``_`` are the same character.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pyvz.errors import BadValue
from pyvz.model.environment import Kind
from pyvz.model.grammar import Grammar

T = TypeVar("T")
Dialect = Literal["prlctl", "vzctl"]
BOTH_KINDS = frozenset(Kind)
CONTAINERS = frozenset({Kind.CT})
MACHINES = frozenset({Kind.VM})


@dataclass(frozen=True, slots=True)
class Option:
    """One option of one tool: how its text becomes a value, in that tool's own units.

    name: long name without dashes.  short: a letter, or "".  metavar: "" for a flag without value.
    parse: text -> new value.  merge: (old value or None, text) -> new value.  With neither, the
    grammar of the parameter reads the text.
    more: as merge(), for the second and later times in one call of an option that replaces a list
    (``--nameserver A --nameserver B`` means both).
    route: text -> name of the field that this text sets, where that is not the row's own field.
    scope: "netif" or "disk" for an option that says something about the interface or disk named
    before it; its merge() takes and gives one NetIf or DiskEntry.
    ignored: why it is accepted without effect (printed as a warning), or "".
    """

    name: str
    metavar: str = ""
    help: str = ""
    parse: Callable[[str], Any] | None = None
    merge: Callable[[Any, str], Any] | None = None
    aliases: tuple[str, ...] = ()
    short: str = ""
    repeat: bool = False
    scope: str = ""
    ignored: str = ""
    kinds: frozenset[Kind] = BOTH_KINDS
    route: Callable[[str], str] | None = None
    more: Callable[[Any, str], Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and the others it answers to."""
        return (self.name, *self.aliases)

    def value(
        self,
        grammar: Grammar[Any] | None,
        old: Any,  # noqa: ANN401
        text: str | None,
        *,
        again: bool = False,
    ) -> Any:  # noqa: ANN401
        """Return the new value that TEXT means, given the OLD one.

        again: the same option was given before in this call.

        Raises BadValue that names the option, the value and what is allowed.
        """
        text = text or ""
        try:
            merge = self.more if again and self.more else self.merge
            if merge is not None:
                return merge(old, text)
            if self.parse is not None:
                return self.parse(text)
            return text if grammar is None else grammar.parse(text)
        except BadValue as error:
            raise BadValue(f"--{self.name}: {error.message}", hint=error.hint) from error


@dataclass(frozen=True, slots=True)
class Param(Generic[T]):
    """One parameter of a container.

    field: where Config has it ("cpu.units").  key: its name in ve.conf.
    default: what counts when nothing is said; None: nothing counts.
    live: it can change while the container runs.  aliases: other keys that are read as this one.
    excludes: the field that setting this one takes away (CPULIMIT and CPULIMIT_MHZ).
    local: it belongs to one container: vz.conf and samples cannot give it (config.md section 1).
    vzlist: the name of its column, or "".  ignored: why it has no effect, or "".
    """

    field: str
    key: str
    kind: Grammar[T]
    default: T | None = None
    help: str = ""
    options: Mapping[str, tuple[Option, ...]] = dataclasses.field(default_factory=dict)
    live: bool = False
    aliases: tuple[str, ...] = ()
    excludes: str = ""
    local: bool = False
    vzlist: str = ""
    ignored: str = ""


def tools(
    *, prlctl: tuple[Option, ...] = (), vzctl: tuple[Option, ...] = ()
) -> dict[str, tuple[Option, ...]]:
    """Return the options of a row, by tool."""
    return {name: given for name, given in (("prlctl", prlctl), ("vzctl", vzctl)) if given}


def both(*options: Option) -> dict[str, tuple[Option, ...]]:
    """Return the same options for both tools."""
    return {"prlctl": options, "vzctl": options}


def normal(name: str) -> str:
    """Return an option's name in the one spelling that tables are keyed by."""
    return name.lstrip("-").replace("_", "-")
