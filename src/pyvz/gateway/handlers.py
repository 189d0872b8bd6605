"""Who answers which procedure: the functions of the modules `calls_*`, found by their names.

What `prompt` has marked is first tried at once.  A coroutine answers in the event loop; a plain
function is a question (in a thread) or, where the table marks its procedure with `w`, work (a
task).  Everything else is answered "not supported".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from pyvz.gateway import (
    calls_blockjob,
    calls_checkpoint,
    calls_connect,
    calls_console,
    calls_define,
    calls_device,
    calls_domain,
    calls_empty,
    calls_guest,
    calls_hardware,
    calls_interface,
    calls_job,
    calls_lifecycle,
    calls_memory,
    calls_metadata,
    calls_migrate,
    calls_monitor,
    calls_network,
    calls_pages,
    calls_placement,
    calls_processor,
    calls_resources,
    calls_save,
    calls_screen,
    calls_snapshot,
    calls_statistics,
    calls_storage,
    calls_tune,
    calls_volume,
    events,
    objectevents,
    procedures,
    prompt,
)
from pyvz.gateway.connection import Handler, Handlers, Quick, asking, working
from pyvz.gateway.procedures import READ, WRITE, Procedure

MODULES: Final[tuple[ModuleType, ...]] = (
    calls_blockjob,
    calls_checkpoint,
    calls_connect,
    calls_console,
    calls_define,
    calls_device,
    calls_domain,
    calls_empty,
    calls_guest,
    calls_hardware,
    calls_interface,
    calls_job,
    calls_lifecycle,
    calls_memory,
    calls_metadata,
    calls_migrate,
    calls_monitor,
    calls_network,
    calls_pages,
    calls_placement,
    calls_processor,
    calls_resources,
    calls_save,
    calls_screen,
    calls_snapshot,
    calls_statistics,
    calls_storage,
    calls_tune,
    calls_volume,
    events,
    objectevents,
)


def handlers() -> Handlers:
    """Return the handler of every procedure that has one, by the procedure's name."""
    found: dict[str, Handler] = {}
    quick: dict[int, tuple[Procedure, Quick]] = {}
    for module in MODULES:
        for name, procedure in procedures.by_name().items():
            function = vars(module).get(name)
            if function is None:
                continue
            found[name] = _handler(procedure, function)
            at_once = prompt.quick_of(function)
            if at_once is not None and procedure.right == READ:
                quick[procedure.number] = (procedure, at_once)
    return Handlers(found, quick)


def _handler(procedure: Procedure, function: Callable[..., Any]) -> Handler:
    if inspect.iscoroutinefunction(function):
        return function
    return working(function) if procedure.right == WRITE else asking(function)
