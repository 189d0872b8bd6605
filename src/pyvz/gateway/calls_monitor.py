"""QEMU's monitor, for looking only: what changes a machine goes through its configuration.

A machine that was changed behind our back would not be the one that vm.conf says.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.model.task import Progress

Key = dict[str, Any]

HMP: Final = 1  # flag: a command as people type it, not QMP
_LOOK_ONLY: Final = (
    "Only what looks is passed on to QEMU: query-* of QMP, info of the human monitor (--hmp);"
    " machines are changed with prlctl set, or by their description"
)


def qemu_domain_monitor_command(
    call: Call, _progress: Progress, *, dom: Key, cmd: str, flags: int
) -> Values:
    """Ask QEMU something, and return its answer as it is."""
    found = domain.find_running(call.office.node, dom)
    domain.check_machine(found, "it has no QEMU")
    command, arguments, mark = _typed(cmd) if flags & HMP else _qmp(cmd)
    answer = call.office.node.machines.monitor(found.env.uuid).execute(command, arguments)
    return {"result": str(answer) if flags & HMP else json.dumps({"return": answer, **mark})}


def _typed(text: str) -> tuple[str, Key, Key]:
    if text.split()[:1] != ["info"] or not text.isprintable():
        raise Failure(failure.OPERATION_UNSUPPORTED, _LOOK_ONLY)
    return "human-monitor-command", {"command-line": text}, {}


def _qmp(text: str) -> tuple[str, Key, Key]:
    try:
        asked = json.loads(text)
        command, arguments = str(asked["execute"]), dict(asked.get("arguments") or {})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Failure(
            failure.INVALID_ARGUMENT, f"This is no command of QMP: {text[:200]}"
        ) from error
    if not command.startswith("query-"):
        raise Failure(failure.OPERATION_UNSUPPORTED, _LOOK_ONLY)
    return command, arguments, {"id": asked["id"]} if "id" in asked else {}
