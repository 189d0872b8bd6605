"""The problem report: one text with what somebody who helps would ask for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvz.daemon.log import LOG_NAME
from pyvz.errors import VZError

if TYPE_CHECKING:
    from pyvz.operations.node import Node

TAIL = 64 << 10  # bytes of each log


def compose(
    node: Node, tasks: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> str:
    """Return the report of NODE; a part that cannot be had says why instead."""
    lines = [f"pyvz problem report, {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}"]
    for title, part in (
        ("machine", _machine()),
        ("features", _features(node)),
        ("environments", _environments(node)),
        ("tasks", (json.dumps(task) for task in tasks)),
        ("events", (json.dumps(event) for event in events[-100:])),
        ("mounts", _file(Path("/proc/self/mountinfo"))),
        ("vz.conf", _file(node.paths.vz_conf)),
        ("vzd.log", _file(node.paths.log / LOG_NAME)),
        ("keeper.log", _file(node.paths.log / "keeper.log")),
    ):
        lines += ["", f"=== {title} ==="]
        try:
            lines += part
        except (VZError, OSError) as error:
            lines.append(f"({error})")
    return "\n".join(lines) + "\n"


def _machine() -> Iterator[str]:
    yield " ".join(os.uname())
    yield f"CPUs {os.cpu_count()}"
    with open("/proc/meminfo", encoding="ascii") as file:
        yield from (line.rstrip() for line in list(file)[:3])


def _features(node: Node) -> Iterator[str]:
    for name, value in node.features._asdict().items():
        yield f"{name}: {value}"


def _environments(node: Node) -> Iterator[str]:
    for env in node.registry.environments():
        yield f"{env.uuid} {env.envid} {env.kind} {node.status(env)} {env.name!r} {env.home}"


def _file(path: Path) -> Iterator[str]:
    """Yield the last lines of a file."""
    with open(path, "rb") as file:
        try:
            file.seek(-TAIL, os.SEEK_END)
            file.readline()
        except OSError:  # shorter than that, or a file of /proc, which knows no end
            file.seek(0)
        yield from file.read(16 * TAIL).decode("utf-8", "replace").splitlines()
