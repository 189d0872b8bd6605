"""A node for tests of verbs that need no running container: real files, a runtime that has none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, cast

from pyvz.model.event import Event
from pyvz.operations.node import Node
from pyvz.store.idrange import IdRanges
from pyvz.store.paths import Paths
from pyvz.store.registry import Registry
from pyvz.vm.runtime import Machines

SAMPLE = """\
# a sample, as OpenVZ ships it
ONBOOT="yes"
PHYSPAGES="65536:65536"
SWAPPAGES="65536:65536"
CPUUNITS="1000"
DISKSPACE="10485760:10485760"
HOSTNAME="must-not-be-copied"
OSTEMPLATE="nor-this"
X_OURS="kept"
"""


class Nothing:
    """A runtime and cgroups on which nothing runs; records what it is told to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inits: dict[str, object] = {}

    def running(self, _uuid: str | None = None) -> dict[str, object]:
        return self.inits

    def frozen(self, _name: str) -> bool:
        return False

    def clean(self, uuid: str) -> None:
        self.calls.append(f"clean {uuid}")


class Events(list[Event]):
    """An event sink that keeps everything."""

    def publish(self, event: Event) -> None:
        self.append(event)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self]


def make_node(root: Path, layout: str = "simfs") -> Node:
    """A node below `root` with the sample `basic`; nothing of it runs."""
    paths = Paths(root)
    for directory in (paths.conf, paths.names, paths.private, paths.ve_root, paths.lock, paths.lib):
        directory.mkdir(parents=True, mode=0o755)
    for directory in (paths.private, paths.ve_root):
        directory.chmod(0o700)
    (paths.conf / "ve-basic.conf-sample").write_text(SAMPLE)
    paths.vz_conf.write_text(f'VELAYOUT="{layout}"\n')
    registry = Registry(paths)
    runtime = cast("Any", Nothing())
    return Node(
        paths=paths,
        registry=registry,
        runtime=runtime,
        cgroups=runtime,
        features=cast("Any", None),
        id_ranges=IdRanges(paths),
        events=Events(),
        machines=Machines(runtime, paths),
    )


def make_archive(directory: Path, *, name: str = "tiny-1-x86_64") -> Path:
    """A tiny root file system as a template cache."""
    tree = directory / "tree"
    (tree / "etc/ssh").mkdir(parents=True)
    (tree / "etc/hostname").write_text("tiny\n")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "bin").mkdir()
    (tree / "bin/sh").write_text("#!")
    (tree / "bin/sh").chmod(0o4755)
    (tree / "sh").symlink_to("/bin/sh")
    made = directory / f"{name}.plain.tar.gz"
    argv = ["tar", "-cz", "--numeric-owner", "--owner=0", "--group=0", "-C", tree, "-f", made, "."]
    subprocess.run([os.fspath(word) for word in argv], check=True)
    return made
