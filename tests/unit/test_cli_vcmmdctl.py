"""vcmmdctl against a vzd of the test's own: columns, units, words of errors, exit codes."""

from __future__ import annotations

import json

import pytest
from cli_fake import FakeServer, Refusal
from cli_world import A, compare, server

from pyvz.cli import vcmmdctl

__all__ = ["server"]

MAX = 2**63 - 1
MIB = 1 << 20
VES = [
    {
        "name": A, "type": "CT", "active": True, "guarantee": 256 * MIB, "limit": 1536 * MIB,
        "swap": 0, "cache": MAX, "cpunum": 0, "auto": False,
    },
    {
        "name": "system.slice/x.service", "type": "SRVC", "active": False, "guarantee": 5000,
        "limit": MAX, "swap": MAX, "cache": MAX, "cpunum": 2, "auto": False,
    },
]  # fmt: skip
FREE = {"total": 3 << 30, "overhead": 0, "available": 1500, "cpu_reserved": 2}


@pytest.fixture
def vzd(server: FakeServer) -> FakeServer:
    server.handlers |= {
        "Memory.List": lambda _: {"ves": VES},
        "Memory.Free": lambda _: {"free": FREE},
        "Memory.Policy": lambda _: {
            "runtime": "noop",
            "file": "density",
            "all": ["density", "noop"],
        },
        "Memory.Stats": stats,
        "Memory.Config": lambda _: {"config": {"b": 1, "a": {}}},
    }
    for name in ("Register", "Activate", "Update", "Deactivate", "Unregister", "SetPolicy"):
        server.handlers[f"Memory.{name}"] = lambda _: {}
    return server


def stats(call: dict[str, object]) -> dict[str, object]:
    if call["name"] != A:
        raise Refusal("VeNotRegistered", f"VE {call['name']} is not registered")
    return {"stats": {"rss": 5, "memfree": -1, "swapin": -1}}


@pytest.mark.parametrize("words", ["", "-h", "-b --si"])
def test_list(vzd: FakeServer, capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert vcmmdctl.main(["list", *words.split()]) == 0
    compare("vcmmdctl-list" + words.replace(" ", ""), capsys.readouterr().out)


def test_an_empty_list_has_its_header(vzd: FakeServer, capsys) -> None:
    vzd.handlers["Memory.List"] = lambda _: {"ves": []}
    assert vcmmdctl.main(["list"]) == 0
    assert capsys.readouterr().out.startswith("name           type active guarantee")


def test_json_is_in_bytes(vzd: FakeServer, capsys) -> None:
    assert vcmmdctl.main(["list", "-j", "-m"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first == {key: value for key, value in VES[0].items() if key != "auto"}
    assert vcmmdctl.main(["free", "-j"]) == 0
    assert json.loads(capsys.readouterr().out) == FREE
    assert vcmmdctl.main(["config"]) == 0
    assert capsys.readouterr().out == '{\n    "a": {},\n    "b": 1\n}\n'


def test_free(vzd: FakeServer, capsys) -> None:
    assert vcmmdctl.main(["free", "-g"]) == 0
    head, values = capsys.readouterr().out.splitlines()
    assert head == "total    overhead    available    cpu_reserved   "
    assert values == "3        0           0            2              "


def test_policies(vzd: FakeServer, capsys) -> None:
    for words in (["policies"], ["current-policy"], ["current-policy", "-f"]):
        assert vcmmdctl.main(words) == 0
    assert capsys.readouterr().out == "  density\n* noop\nnoop\ndensity\n"


def test_stats_go_on_after_one_that_is_not_there(vzd: FakeServer, capsys) -> None:
    assert vcmmdctl.main(["stats", "nobody", A]) == 0
    said = capsys.readouterr()
    assert said.out == f"{A}: rss=5 memfree=-1 swapin=-1\n"
    assert said.err == "nobody: VCMMD returned error: VE not registered\n"
    assert vcmmdctl.main(["get-missing-stats", A]) == 0
    assert capsys.readouterr().out == f"{A}: memfree swapin\n"


def test_figures(vzd: FakeServer) -> None:
    given = ["--guarantee", "0x10m", "--limit=-1", "--swap", "2G", "--cpunum", "3"]
    assert vcmmdctl.main(["update", A, *given]) == 0
    (call,) = vzd.named("Memory.Update")
    assert call["config"] == {
        "guarantee": 16 * MIB, "limit": MAX, "swap": 2 << 30, "cache": None, "cpunum": 3,
    }  # fmt: skip
    assert vcmmdctl.main(["register", "srvc", "x.slice", "--limit", "4k"]) == 0
    (call,) = vzd.named("Memory.Register")
    assert (call["type"], call["name"], call["config"]["limit"]) == ("SRVC", "x.slice", 4096)


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["list", "more"],
        ["list", "--what"],
        ["register"],
        ["register", "CT"],
        ["register", "CAR", "x"],
        ["register", "CT", "x", "y"],
        ["update"],
        ["update", "x", "--limit"],
        ["update", "x", "--limit", "1b"],
        ["update", "x", "--limit", "1.5g"],
        ["update", "x", "--cpunum", "-1"],
        ["set-log-level", "loud"],
        ["set-policy"],
    ],
)
def test_a_wrong_command_line(vzd: FakeServer, capsys, words: list[str]) -> None:
    assert vcmmdctl.main(words) == 2
    assert capsys.readouterr().err
    assert not any(method.startswith("Memory.") for method, _ in vzd.calls)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("GuaranteeRefused", "Unable to apply VE guarantee"),
        ("NotEnoughResources", "VE operation failed"),
        ("BadValue", "Invalid VE configuration"),
        ("NotRunning", "VE not active"),
        ("AlreadyRunning", "VE already active"),
        ("AlreadyExists", "VE name already in use"),
    ],
)
def test_the_words_of_the_original_come_first(vzd: FakeServer, capsys, kind, text) -> None:
    def refuse(_: dict[str, object]) -> dict[str, object]:
        raise Refusal(kind, "why it failed", "more", "what to do")

    vzd.handlers["Memory.Update"] = refuse
    assert vcmmdctl.main(["update", A]) == 1
    assert capsys.readouterr().err == (
        f"VCMMD returned error: {text}\n  why it failed\n  more\nhint: what to do\n"
    )


def test_policy_errors(vzd: FakeServer, capsys) -> None:
    for kind, text in (
        ("PolicyNotFound", "policy name is invalid"),
        ("BadValue", "you have to shutdown all VEs before policy switching"),
    ):

        def refuse(_: dict[str, object], kind: str = kind) -> dict[str, object]:
            raise Refusal(kind, "why")

        vzd.handlers["Memory.SetPolicy"] = refuse
        assert vcmmdctl.main(["set-policy", "x"]) == 1
        first = capsys.readouterr().err.splitlines()[0]
        assert first == f"VCMMD returned error: Set policy failed({text})"


def test_help(capsys) -> None:
    assert vcmmdctl.main(["--help"]) == 0
    assert "set-policy POLICY" in capsys.readouterr().out
    assert vcmmdctl.main([]) == 2
    assert vcmmdctl.main(["--version"]) == 0
