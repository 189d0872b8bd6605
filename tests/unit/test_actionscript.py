"""Action scripts: which are run, which are skipped, which are refused.  (Running them: system.)"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyvz.errors import ActionScriptFailed, CommandFailed, Timeout
from pyvz.linux import run
from pyvz.model.environment import Environment, Kind
from pyvz.operations import actionscript
from pyvz.operations.node import Node
from worlds import make_node

UUID = "1f2e3d4c-0000-4000-8000-00000000000a"


class Recorder:
    """Stands where programs are run; answers with the status that a script's text says."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.env: dict[str, str] = {}

    def __call__(self, argv: list[Path], **options: Any) -> run.Result:
        self.ran.append(os.fspath(argv[0]))
        self.env = dict(options["env"])
        assert options["timeout"] == actionscript.TIME_LIMIT
        text = argv[0].read_text()
        if text == "hang":
            raise Timeout("it did not end")
        if text == "broken":
            raise CommandFailed("Exec format error")
        return run.Result(int(text or "0"), "said\n", "complained\n")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return make_node(tmp_path / "n")


@pytest.fixture
def env(node: Node) -> Environment:
    home = node.paths.private / UUID
    (home / "scripts").mkdir(parents=True, mode=0o700)
    (home / "fs").mkdir()
    return Environment(UUID, "101", "ct1", Kind.CT, home)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(run, "run", recorder)
    return recorder


def script(path: Path, text: str = "0", mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("action", "global_first"),
    [("premount", True), ("mount", True), ("umount", False), ("postumount", False)],
)
def test_order_and_environment(
    node: Node, env: Environment, ran: Recorder, action: str, global_first: bool
) -> None:
    for_all = script(node.paths.conf / f"vps.{action}")
    own = script(env.home / "scripts" / action)
    assert actionscript.run(node, env, action) is False
    expected = [for_all, own] if global_first else [own, for_all]
    assert ran.ran == [os.fspath(path) for path in expected]
    assert ran.env["VEID"] == "101"
    assert ran.env["VE_CONFFILE"].startswith(os.fspath(node.paths.conf))
    assert "." not in ran.env["PATH"].split(":")


def test_missing_and_not_executable_are_skipped(
    node: Node, env: Environment, ran: Recorder
) -> None:
    script(env.home / "scripts/mount", mode=0o644)
    assert actionscript.run(node, env, "mount") is False
    (env.home / "scripts/mount").unlink()
    (env.home / "scripts").rmdir()
    assert actionscript.run(node, env, "mount") is False
    assert ran.ran == []


def test_39_says_skip(node: Node, env: Environment, ran: Recorder) -> None:
    script(env.home / "scripts/premount", "39")
    assert actionscript.run(node, env, "premount") is True


def test_the_last_word_counts(node: Node, env: Environment, ran: Recorder) -> None:
    script(node.paths.conf / "vps.premount", "39")
    script(env.home / "scripts/premount", "0")
    assert actionscript.run(node, env, "premount") is False


@pytest.mark.parametrize("text", ["1", "255", "-9", "hang", "broken"])
def test_failure_names_the_script_and_stops(
    node: Node, env: Environment, ran: Recorder, text: str
) -> None:
    script(node.paths.conf / "vps.mount", text)
    script(env.home / "scripts/mount")
    with pytest.raises(ActionScriptFailed, match=r"vps\.mount"):
        actionscript.run(node, env, "mount")
    assert len(ran.ran) == 1
    actionscript.run_ignoring_failure(node, env, "mount")


def test_what_it_said_is_told(node: Node, env: Environment, ran: Recorder) -> None:
    script(env.home / "scripts/mount", "3")
    with pytest.raises(ActionScriptFailed) as caught:
        actionscript.run(node, env, "mount")
    assert "status 3" in caught.value.message
    assert "complained" in caught.value.details


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
@pytest.mark.parametrize("what", ["scripts/mount", "scripts"])
def test_writable_by_others_is_refused(
    node: Node, env: Environment, ran: Recorder, what: str, mode: int
) -> None:
    script(env.home / "scripts/mount")
    (env.home / what).chmod(mode)
    with pytest.raises(ActionScriptFailed, match="may write"):
        actionscript.run(node, env, "mount")
    assert ran.ran == []


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
@pytest.mark.parametrize("what", ["scripts/mount", "scripts"])
def test_of_another_owner_is_refused(
    node: Node, env: Environment, ran: Recorder, what: str
) -> None:
    script(env.home / "scripts/mount")
    os.chown(env.home / what, 1000, 1000)
    with pytest.raises(ActionScriptFailed, match="belongs to user 1000"):
        actionscript.run(node, env, "mount")
    assert ran.ran == []


def test_links_into_the_guest_are_refused(node: Node, env: Environment, ran: Recorder) -> None:
    """The guest's root owns its files by uid 0 on disk: only the place tells them apart."""
    evil = script(env.home / "fs/evil")
    (env.home / "scripts/mount").symlink_to("../fs/evil")
    with pytest.raises(ActionScriptFailed, match="links"):
        actionscript.run(node, env, "mount")
    (env.home / "scripts/mount").unlink()
    (env.home / "scripts").rmdir()
    (env.home / "fs/scripts").mkdir(mode=0o700)
    evil.rename(env.home / "fs/scripts/mount")
    (env.home / "scripts").symlink_to("fs/scripts")
    with pytest.raises(ActionScriptFailed, match="links"):
        actionscript.run(node, env, "mount")
    assert ran.ran == []


def test_something_else_than_a_file_is_refused(node: Node, env: Environment, ran: Recorder) -> None:
    os.mkfifo(env.home / "scripts/mount", 0o700)
    with pytest.raises(ActionScriptFailed):
        actionscript.run(node, env, "mount")
    (node.paths.conf / "vps.umount").mkdir()
    with pytest.raises(ActionScriptFailed):
        actionscript.run(node, env, "umount")


def test_global_scripts_may_be_links(
    node: Node, env: Environment, ran: Recorder, tmp_path: Path
) -> None:
    (node.paths.conf / "vps.mount").symlink_to(script(tmp_path / "mine"))
    actionscript.run(node, env, "mount")
    assert len(ran.ran) == 1


@pytest.mark.parametrize(
    ("text", "argv", "data"),
    [
        (b"echo", ("/bin/sh", "-c", "echo", "/bin/sh"), b""),
        (b"#!/bin/bash -e\nx", ("/bin/bash", "-e", "-c", "#!/bin/bash -e\nx", "/bin/bash"), b""),
        (
            b"#!/usr/bin/env bash\nx",
            ("/usr/bin/env", "bash", "-c", "#!/usr/bin/env bash\nx", "/usr/bin/env"),
            b"",
        ),
        (
            b"#!/usr/bin/python3\nx",
            ("/usr/bin/python3", "/dev/stdin"),
            b"#!/usr/bin/python3\nx",
        ),
        (b"#!\nx", ("/bin/sh", "-c", "#!\nx", "/bin/sh"), b""),
        (b"#!/bin/sh\n" + b"x" * 200_000, ("/bin/sh", "/dev/stdin"), None),
        (b"a\0b", ("/bin/sh", "/dev/stdin"), b"a\0b"),
    ],
)
def test_how_a_script_goes_inside(text: bytes, argv: tuple[str, ...], data: bytes | None) -> None:
    assert actionscript.command(text) == (argv, text if data is None else data)
