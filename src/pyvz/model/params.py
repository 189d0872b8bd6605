"""PARAMS: the one table of parameters of a container, and how to find a row in it.

Rows stand in params_base, params_cpu, params_memory, params_disk, params_net, params_security and
params_machine;
options without a parameter stand in params_actions.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pyvz.errors import BadValue, UsageError
from pyvz.model import (
    params_base,
    params_cpu,
    params_disk,
    params_machine,
    params_memory,
    params_net,
    params_security,
)
from pyvz.model.param import Option, Param, normal
from pyvz.model.params_actions import ACTIONS

__all__ = ["ACTIONS", "PARAMS", "by_field", "by_key", "by_option", "options"]


def _rows(module: ModuleType) -> list[Param[Any]]:
    """Return the rows of one part of the table, in its order."""
    rows: list[Param[Any]] = []
    for value in vars(module).values():
        rows += [x for x in (value if isinstance(value, tuple) else (value,)) if type(x) is Param]
    return list({id(row): row for row in rows}.values())


PARAMS: tuple[Param[Any], ...] = tuple(
    row
    for module in (
        params_base,
        params_cpu,
        params_memory,
        params_disk,
        params_net,
        params_security,
        params_machine,
    )
    for row in _rows(module)
)
BY_KEY: dict[str, Param[Any]] = {key: row for row in PARAMS for key in (row.key, *row.aliases)}
BY_FIELD: dict[str, Param[Any]] = {row.field: row for row in PARAMS}
_Found = tuple[Param[Any] | None, Option]


def _index(dialect: str) -> dict[tuple[str, str], _Found]:
    found: dict[tuple[str, str], _Found] = {}
    rows: list[_Found] = [
        (row, option) for row in PARAMS for option in row.options.get(dialect, ())
    ]
    for row, option in (*rows, *((None, option) for option in ACTIONS[dialect])):
        for name in option.names:
            found[option.scope, normal(name)] = (row, option)
    return found


_OPTIONS: dict[str, dict[tuple[str, str], _Found]] = {name: _index(name) for name in ACTIONS}


def by_key(key: str) -> Param[Any] | None:
    """Return the row of KEY in ve.conf (or of an alias of it), or None."""
    return BY_KEY.get(key)


def by_field(field: str) -> Param[Any]:
    """Return the row of a FIELD of Config ("cpu.units").  KeyError: a defect of the caller."""
    return BY_FIELD[field]


def by_option(dialect: str, name: str, scope: str = "") -> _Found:
    """Return the (row or None, option) that NAME means in a dialect; ``-`` and ``_`` are the same.

    scope: "netif" or "disk" while options speak of an interface or a disk; one that has no meaning
    there is looked for among the others.  Raises UsageError for a name that nothing answers to.
    """
    table = _OPTIONS[dialect]
    found = table.get((scope, normal(name))) or table.get(("", normal(name)))
    if found is None:
        scopes = [where for where in ("netif", "disk") if (where, normal(name)) in table]
        if scopes:
            noun = "an interface" if scopes[0] == "netif" else "a disk"
            raise UsageError(f"--{normal(name)} belongs to {noun}; name it first")
        raise UsageError(f"There is no option --{normal(name)}")
    return found


def options(dialect: str) -> tuple[_Found, ...]:
    """Return every (row or None, option) of a dialect once, in the order of the table."""
    return tuple({id(pair[1]): pair for pair in _OPTIONS[dialect].values()}.values())


def changes(
    dialect: str,
    name: str,
    text: str | None,
    old: Any,  # noqa: ANN401
    *,
    again: bool = False,
) -> dict[str, Any]:
    """Return {field: new value} that the option NAME with TEXT means.

    old: a Config, asked for the present value with get(field).  again: the same option was given
    before in this call, so a list is continued.  Empty when the option is ignored or is no
    parameter.  Raises BadValue or UsageError with the option's name.
    """
    row, option = by_option(dialect, name)
    if row is None or option.ignored:
        option.value(None, None, text)
        return {}
    if option.metavar and text is None:
        raise BadValue(f"--{option.name} needs a value: {option.metavar}")
    field = option.route(text or "") if option.route else row.field
    return {field: option.value(row.kind, old.get(field), text, again=again)}
