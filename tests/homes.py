"""A node with a tiny template, for the tests that make, move and remove homes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import faults
from pyvz.errors import (
    Cancelled,
    TemplateNotFound,
)
from pyvz.model.conffile import ConfFile
from pyvz.model.environment import Environment
from pyvz.operations import provision
from pyvz.operations.node import Node
from pyvz.operations.provision import CreateRequest
from worlds import Events, make_archive, make_node

UUID = "1f2e3d4c-0000-4000-8000-00000000000a"
TEMPLATE = ".tiny-1"
MAX_STEPS = 200
TEMPORARY = re.compile(r"etc/vz/(conf|names)/\.[0-9.]+\.tmp: None")
# Locks come and go; what a verb may leave in them is nobody's business.
NOISE = ("vz/lock", "var/lib/pyvz/registry.lock", "vz/template", "var/lib/pyvz/lock")


def node_with_template(tmp_path: Path) -> Node:
    """Return a node that has a cache of TEMPLATE, everything made on first use in place."""
    root = tmp_path / "n"
    root.mkdir()
    made = make_node(root)
    (made.paths.template / "cache").mkdir(parents=True)
    archive = make_archive(tmp_path)
    archive.rename(made.paths.template / "cache" / archive.name)
    # Once through everything, so that what is made on first use is there.
    with pytest.raises(TemplateNotFound):
        provision.create(made, request(ostemplate="nothing-9"))
    provision.create(made, request())
    provision.delete(made, "ct1")
    cast_events(made).clear()
    return made


def cast_events(node: Node) -> Events:
    assert isinstance(node.events, Events)
    return node.events


def request(**fields: object) -> CreateRequest:
    known: dict[str, object] = {"name": "ct1", "uuid": UUID, "ostemplate": TEMPLATE}
    return CreateRequest(**(known | fields))  # type: ignore[arg-type]


def world(node: Node) -> dict[str, object]:
    found = faults.world(node.paths.root, without=NOISE)
    return {path: what for path, what in found.items() if not path.endswith("/timestamp")}


def conf_of(env: Environment) -> ConfFile:
    return ConfFile.parse((env.home / "ve.conf").read_text())


class Called:
    """A progress that calls the work off at its n-th sign of life."""

    def __init__(self, at: int) -> None:
        self.left = at

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Cancelled("called off")

    def stage(self, text: str) -> None:
        self.check()

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        self.check()
