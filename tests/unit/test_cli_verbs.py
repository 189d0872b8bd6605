"""What the verbs print, send and refuse, against a vzd of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeServer, Parameters, Refusal
from cli_world import A, C, compare, server

from pyvz.cli import prlctl, prlsrvctl, vzctl, vzlist

__all__ = ["server"]

REFUSED = [
    (prlctl, [], 1, "", "Usage: prlctl ACTION"),
    (prlctl, ["frobnicate"], 1, "Unrecognized action: frobnicate", ""),
    (prlctl, ["reinstall", "a"], 255, "not supported yet", ""),
    (prlctl, ["list", "-o", "nonsense"], 1, "Unknown field: nonsense", ""),
    (prlctl, ["list", "-s", "nonsense"], 1, "nonsense is an invalid field name", ""),
    (prlctl, ["list", "nobody"], 255, "Failed to get VM config: ", ""),
    (prlctl, ["status", "nobody"], 255, "could not be found", ""),
    (prlctl, ["start"], 1, "is not specified", ""),
    (prlctl, ["start", "web", "--quick"], 1, "Unrecognized option: --quick", ""),
    (prlctl, ["list", "-l", "root@elsewhere"], 253, "only the local node", ""),
    (prlctl, ["create", "x", "-d", "debian", "--ostemplate", "debian-12"], 1, "simultaneously", ""),
    (prlctl, ["create", "x", "-d", "plan9"], 1, "--distribution", ""),
    (prlctl, ["send-key-event", "web"], 1, "--key or --scancode", ""),
    (prlctl, ["capture", "web"], 255, "a container has none", ""),
    (prlctl, ["create", "x", "--vmtype", "jail"], 1, "--vmtype", ""),
    (prlctl, ["clone", "db"], 1, "the --name option is not specified", ""),
    (prlctl, ["move", "db", "--dst", "./here"], 1, "relative path", ""),
    (prlctl, ["set", "db"], 1, "No options are specified", ""),
    (prlctl, ["set", "db", "--nonsense", "1"], 1, "Unrecognized option: --nonsense", ""),
    (prlctl, ["exec", "db"], 1, "Incorrect exec command", ""),
    (prlsrvctl, ["usb", "list"], 255, "not supported yet", ""),
    (prlsrvctl, ["nonsense"], 1, "Unrecognized action", ""),
    (vzctl, [], 20, "", "Usage: vzctl"),
    (vzctl, ["frobnicate", "1"], 20, "Bad command: frobnicate", ""),
    (vzctl, ["start"], 21, "ctid is not given", ""),
    (vzctl, ["start", "nobody"], 21, "Invalid ctid is specified: nobody", ""),
    (vzctl, ["start", "999"], 14, "Container configuration file does not exist", ""),
    (vzctl, ["tsnapshot", "101"], 233, "not supported yet", ""),
    (vzctl, ["set", "101", "--name", "x"], 137, "without --save", ""),
    (vzctl, ["set", "101", "--setmode", "restart"], 20, "without --save", ""),
    (vzctl, ["quotaon", "101"], 0, "deprecated", ""),
    (vzctl, ["exec", "101"], 20, "No command to execute", ""),
    (vzlist, ["-o", "nonsense"], 1, "Unknown field: nonsense", ""),
    (vzlist, ["nobody"], 1, "Container ID nobody is invalid.", ""),
]


@pytest.mark.parametrize(("program", "argv", "code", "err", "out"), REFUSED)
def test_refusals(
    program: Any,
    argv: list[str],
    code: int,
    err: str,
    out: str,
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert program.main(argv) == code
    captured = capsys.readouterr()
    assert err in captured.err
    assert out in captured.out
    assert all(name in {"Environment.List", "Environment.Status"} for name, _ in server.calls)


def test_daemon_unreachable(short_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVZ_ROOT", os.fspath(short_root))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert prlctl.main(["list"]) == 253


def result(**values: Any) -> Any:
    """Return a handler of a long call."""

    def handler(_: Parameters) -> Iterator[Parameters]:
        yield {"progress": {"stage": "Working", "done": 1, "total": 2, "unit": "B"}}
        yield {"result": values}

    return handler


DONE: list[tuple[Any, list[str], str, Any, str]] = [
    (prlctl, ["start", "db"], "Environment.Start", result(), "start"),
    (prlctl, ["stop", "web"], "Environment.Stop", result(how="stopped"), "stop"),
    (prlctl, ["stop", "web", "--kill"], "Environment.Stop", result(how="killed"), "stop-kill"),
    (prlctl, ["stop", "db", "--fast"], "Environment.Stop", result(how="already"), "stop-already"),
    (prlctl, ["restart", "web"], "Environment.Restart", result(), "restart"),
    (prlctl, ["reset", "web"], "Environment.Reset", result(), "reset"),
    (prlctl, ["pause", "web"], "Environment.Pause", lambda _: {}, "pause"),
    (prlctl, ["resume", "web"], "Environment.Resume", lambda _: {}, "resume"),
    (prlctl, ["mount", "db"], "Environment.Mount", lambda _: {"root": "/r"}, "mount"),
    (prlctl, ["umount", "db"], "Environment.Umount", lambda _: {}, "umount"),
    (prlctl, ["destroy", "db"], "Environment.Delete", result(), "delete"),
    (prlctl, ["clone", "db", "--name", "d2"], "Environment.Clone", result(uuid=C), "clone"),
    (prlctl, ["move", "db", "--dst", "/x"], "Environment.Move", result(), "move"),
    (prlctl, ["unregister", "db"], "Environment.Unregister", lambda _: {}, "unregister"),
    (
        prlctl,
        ["register", "/vz/private/x", "--preserve-uuid"],
        "Environment.Register",
        lambda _: {"uuid": C, "name": "x"},
        "register",
    ),
    (
        prlctl,
        ["create", "n", "--vmtype", "ct", "--ostemplate", "debian-12", "--timeout", "7"],
        "Environment.Create",
        result(uuid=C),
        "create",
    ),
    (
        prlctl,
        ["set", "db", "--cpus", "2", "--onboot", "yes", "--ipadd", "10.0.0.4", "--ipadd=10.0.0.5"],
        "Environment.Set",
        lambda _: {"echo": ["set cpus 2"], "restart_needed": []},
        "set",
    ),
    (vzctl, ["start", "101"], "Environment.Start", result(), "vzctl-start"),
    (vzctl, ["--quiet", "start", "101"], "Environment.Start", result(), "vzctl-start-quiet"),
    (vzctl, ["stop", "web", "--fast"], "Environment.Stop", result(how="killed"), "vzctl-stop"),
    (
        vzctl,
        ["create", "102", "--ostempl", "debian-12", "--hostname", "h", "--layout", "simfs"],
        "Environment.Create",
        result(uuid=C),
        "vzctl-create",
    ),
    (vzctl, ["create", "new"], "Environment.Create", result(uuid=C), "vzctl-create-name"),
    (
        vzctl,
        ["set", "101", "--ram", "1G", "--save", "--setmode", "ignore"],
        "Environment.Set",
        lambda _: {"echo": [], "restart_needed": ["features"]},
        "vzctl-set-save",
    ),
    (
        vzctl,
        ["set", "101", "--cpuunits", "500"],
        "Environment.Set",
        lambda _: {"echo": [], "restart_needed": []},
        "vzctl-set",
    ),
    (vzctl, ["destroy", "101"], "Environment.Delete", result(), "vzctl-destroy"),
]


@pytest.mark.parametrize(
    ("program", "argv", "method", "handler", "name"), DONE, ids=[row[4] for row in DONE]
)
def test_verbs(
    program: Any,
    argv: list[str],
    method: str,
    handler: Any,
    name: str,
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.handlers[method] = handler
    assert program.main(argv) == 0
    captured = capsys.readouterr()
    [call] = server.named(method)
    told = [f"call: {key}={call[key]!r}" for key in sorted(call)]
    compare(f"verb-{name}", "\n".join([captured.out, captured.err, *told]) + "\n")


def test_status_lines(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert prlctl.main(["status", "{" + A + "}"]) == 0
    assert vzctl.main(["status", "web"]) == 0
    assert vzctl.main(["status", "101"]) == 0
    assert vzctl.main(["status", "102"]) == 0
    assert capsys.readouterr().out == (
        f"CT {{{A}}} exist running\n"
        f"VEID {A} exist mounted running\n"
        "VEID 101 exist unmounted down\n"
        "VEID 102 deleted unmounted down\n"
    )


@pytest.mark.parametrize(("program", "code"), [(prlctl, 255), (vzctl, 32)], ids=["prlctl", "vzctl"])
def test_error_of_the_server(
    program: Any, code: int, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Parameters) -> Parameters:
        raise Refusal("AlreadyRunning", "db is already running", "pid 7\npid 8", "stop it")

    server.handlers["Environment.Start"] = refuse
    assert program.main(["start", "db"]) == code
    before = "Failed to start the CT: " if program is prlctl else ""
    assert capsys.readouterr().err == (
        f"{before}db is already running\n  pid 7\n  pid 8\nhint: stop it\n"
    )


def test_a_value_that_the_server_refuses_is_exit_code_1(server: FakeServer) -> None:
    def refuse(_: Parameters) -> Parameters:
        raise Refusal("BadValue", "--cpuunits: '7' is not between 8 and 500000")

    server.handlers["Environment.Set"] = refuse
    assert prlctl.main(["set", "db", "--cpuunits", "7"]) == 1
    assert vzctl.main(["set", "101", "--cpuunits", "7"]) == 21


def test_a_defect_of_ours_is_told_in_one_line(
    server: FakeServer, capsys: pytest.CaptureFixture[str], short_root: Path
) -> None:
    (short_root / "var/log/pyvz").mkdir(parents=True)
    server.handlers["Environment.Status"] = lambda _: {"nonsense": 1}
    assert prlctl.main(["status", "x"]) == 255
    assert vzctl.main(["status", "1"]) == 3
    err = capsys.readouterr().err
    assert "internal error" in err
    assert "Traceback" not in err
    assert "Traceback" in (short_root / "var/log/pyvz/cli.log").read_text()
