"""What the command lines print and send, against a vzd of the test's own.

Golden files stand in tests/unit/golden; `PYVZ_REGEN=1 pytest tests/unit/test_cli_output.py`
writes them anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeServer, Parameters, Refusal

from pyvz.cli import prlctl, prlsrvctl, vzctl, vzlist
from pyvz.cli.fields import FIELDS

GOLDEN = Path(__file__).parent / "golden"
A = "1b3c7c7e-1111-4a4a-8b8b-000000000001"
B = "1b3c7c7e-2222-4a4a-8b8b-000000000002"
C = "1b3c7c7e-3333-4a4a-8b8b-000000000003"


def environment(**more: Any) -> dict[str, Any]:
    """Return the raw values of one environment."""
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    row |= {
        "uuid": A,
        "envid": A,
        "name": "web",
        "kind": "ct",
        "home": f"/vz/private/{A}",
        "root": f"/vz/root/{A}",
        "status": "running",
        "template": False,
        "hostname": "web.example.com",
        "description": 'the "web" server',
        "owner": "root",
        "ostemplate": ".debian-12",
        "distribution": "debian",
        "layout": "simfs",
        "cpuunits": 1000,
        "ioprio": 4,
        "onboot": "yes",
        "features": {"nfs": True, "bridge": False},
        "devnodes": ["net/tun:rw", "fuse:rw"],
        "ip_configured": ["2001:db8::2/64", "10.0.0.2/24", "10.0.0.3"],
        "ip": ["fe80::1", "10.0.0.2", "10.0.0.3"],
        "nameserver": ["10.0.0.1", "10.0.0.9"],
        "searchdomain": ["example.com"],
        "ifname": ["eth0"],
        "host_ifname": ["vethb4aabbcc"],
        "mac": ["00:1c:42:aa:bb:cc"],
        "host_mac": ["fe:1c:42:aa:bb:cc"],
        "network": ["Bridged"],
        "uptime": 93784.1234,
        "laverage": [1.0, 0.5, 0.256],
        "diskspace": {"usage": 1024, "softlimit": 10485760, "hardlimit": 10485760},
        "numproc": {"held": 23, "maxheld": 30, "barrier": 512, "limit": 512, "failcnt": 1},
        "physpages": {"held": 65536, "maxheld": None, "barrier": 0, "limit": 262144, "failcnt": 0},
    }
    return row | more


ENVIRONMENTS = [
    environment(),
    environment(
        uuid=B,
        envid="101",
        name="db",
        home=f"/vz/private/{B}",
        status="stopped",
        hostname=None,
        description=None,
        ip_configured=[],
        ip=[],
        ifname=[],
        host_ifname=[],
        mac=[],
        features={},
        devnodes=[],
        uptime=0.0,
        laverage=None,
        iolimit=10485760,
        cpulimit=50,
        cpus=2,
        ha_enable=False,
        ha_prio=7,
        onboot=None,
    ),
    environment(uuid=C, name="golden", status="stopped", template=True, ip_configured=[]),
]


@pytest.fixture
def server(short_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that knows three environments."""
    fake = FakeServer(short_root)
    monkeypatch.setenv("PYVZ_ROOT", os.fspath(short_root))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    fake.handlers |= {"Environment.List": listed, "Environment.Status": status}
    yield fake
    fake.close()


def find(ref: str) -> dict[str, Any] | None:
    """Return the environment of a reference."""
    bare = ref.strip("{}")
    return next((e for e in ENVIRONMENTS if bare in (e["uuid"], e["envid"], e["name"])), None)


def listed(call: Parameters) -> Parameters:
    """Answer List."""
    refs = call.get("refs") or []
    errors = [{"ref": ref, "message": f"no '{ref}'"} for ref in refs if find(ref) is None]
    found = [find(ref) for ref in refs] if refs else ENVIRONMENTS
    rows = [{name: row[name] for name in call["fields"]} for row in found if row]
    return {"rows": rows, "errors": errors}


def status(call: Parameters) -> Parameters:
    """Answer Status."""
    row = find(call["ref"])
    if row is None:
        return {"uuid": "", "kind": "", "status": "", "mounted": False, "exists": False}
    return {
        "uuid": row["uuid"],
        "kind": row["kind"],
        "status": row["status"],
        "mounted": row["status"] == "running",
        "exists": True,
    }


LISTS = {
    "prlctl-list": (prlctl, ["list"]),
    "prlctl-list-a": (prlctl, ["list", "-a"]),
    "prlctl-list-t": (prlctl, ["list", "-t"]),
    "prlctl-list-S-H": (prlctl, ["list", "-S", "-H"]),
    "prlctl-list-ref": (prlctl, ["list", "db", "-o", "name,ip_configured"]),
    "prlctl-list-o-all": (
        prlctl,
        [
            *("list", "-a", "-o"),
            "uuid,envid,home,type,name,status,dist,owner,description,ip,ip_configured,hostname,"
            "netif,mac,ostemplate,location,iolimit,netdev,ha_enable,ha_prio,numproc,-",
        ],
    ),
    "prlctl-list-ip-last": (prlctl, ["list", "-a", "-o", "name,ip"]),
    "prlctl-list-features": (prlctl, ["list", "-a", "-o", "features,name"]),
    "prlctl-list-sort": (prlctl, ["list", "-a", "-o", "name", "-s", "-name"]),
    "prlctl-list-j": (prlctl, ["list", "-a", "-j"]),
    "prlctl-list-j-alias": (prlctl, ["list", "-a", "-j", "-o", "id,mac,features,ha_prio"]),
    "prlctl-list-L": (prlctl, ["list", "-L"]),
    "prlctl-list-compat": (prlctl, ["list", "-a", "--compat", "-o", "veid,laverage,name"]),
    "prlctl-help": (prlctl, ["--help"]),
    "prlsrvctl-help": (prlsrvctl, ["--help"]),
    "vzctl-help": (vzctl, ["--help"]),
    "vzlist-help": (vzlist, ["--help"]),
    "vzlist": (vzlist, []),
    "vzlist-a": (vzlist, ["-a"]),
    "vzlist-a-n": (vzlist, ["-a", "-n"]),
    "vzlist-1": (vzlist, ["-a", "-1"]),
    "vzlist-S": (vzlist, ["-S"]),
    "vzlist-i": (vzlist, ["-a", "-i", "vethb4aabbcc"]),
    "vzlist-name": (vzlist, ["-a", "-N", "d*", "-o", "name"]),
    "vzlist-L": (vzlist, ["-L"]),
    "vzlist-ubc": (
        vzlist,
        ["-a", "-o", "name,numproc,numproc.m,numproc.l,numproc.f,physpages,physpages.m,kmemsize"],
    ),
    "vzlist-many": (
        vzlist,
        [
            *("-a", "-o"),
            "diskspace,diskspace.s,laverage,uptime,cpulimit,cpulimitM,cpuunits,cpus,ioprio,"
            "iolimit,onboot,disabled,layout,ha_enable,ha_prio,tm,status,devnodes",
        ],
    ),
    "vzlist-features": (vzlist, ["-a", "-o", "ctid,features"]),
    "vzlist-j": (vzlist, ["-a", "-j"]),
    "vzlist-j-o": (vzlist, ["-a", "-j", "-o", "ctid,devnodes,mac,nameserver,uptime,autostop"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    program, argv = LISTS[name]
    assert program.main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    compare(name, captured.out)


def compare(name: str, text: str) -> None:
    """Compare with the golden file, or write it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PYVZ_REGEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


INFO = {
    "ID": A,
    "EnvID": A,
    "Name": "web",
    "Description": "",
    "Type": "CT",
    "State": "running",
    "OS": "debian",
    "Template": "no",
    "Uptime": "0",
    "Home": f"/vz/private/{A}",
    "GuestTools": {"state": "not_installed"},
    "Remote display": {"mode": "off", "address": "0.0.0.0"},
    "Hardware": {
        "cpu": {
            "sockets": 1,
            "cpus": "unlimited",
            "VT-x": True,
            "cpuunits": 1000,
            "cpulimit": "50%",
        },
        "memory": {"size": "512Mb", "hotplug": False},
        "video": {"size": "0Mb", "3d acceleration": "off", "vertical sync": "yes"},
        "memory_guarantee": {"auto": True},
        "hdd0": {
            "enabled": True,
            "port": "scsi:0",
            "image": "/vz/private/x/root.hdd",
            "type": "expanded",
            "size": "10240Mb",
            "state": "connected",
        },
        "venet0": {"enabled": True, "type": "routed", "ips": "10.0.0.2/255.255.255.0 "},
    },
    "Features": {"nfs": "on", "bridge": "off"},
    "Offline management": {"enabled": False},
    "Hostname": "web.example.com",
    "High Availability": {"enabled": "yes", "prio": 0},
}


@pytest.mark.parametrize(("name", "argv"), [("info", ["-i"]), ("info-j", ["-i", "-j"])])
def test_info(
    name: str,
    argv: list[str],
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    server.handlers["Environment.Info"] = lambda _: {"info": dict(INFO)}
    assert prlctl.main(["list", "web", *argv]) == 0
    compare(f"prlctl-list-{name}", capsys.readouterr().out)


def test_info_of_all_leaves_templates_out(server: FakeServer) -> None:
    server.handlers["Environment.Info"] = lambda _: {"info": dict(INFO)}
    assert prlctl.main(["list", "-i"]) == 0
    assert [call["ref"] for call in server.named("Environment.Info")] == [B, A]


def test_node_info(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Node.Info"] = lambda _: {
        "info": {
            "ID": A,
            "Hostname": "node1",
            "Version": "Server 0.1.0",
            "License": {"state": "not installed"},
            "Hardware info": {"/dev/sda": {"name": "Disk", "type": "hdd"}},
            "Features": [["kernel", "6.18", ""], ["userns", True, "a child could map ids"]],
        }
    }
    assert prlsrvctl.main(["info"]) == 0
    compare("prlsrvctl-info", capsys.readouterr().out)
    assert prlsrvctl.main(["info", "-j"]) == 0
    compare("prlsrvctl-info-j", capsys.readouterr().out)


def test_empty_json_list(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Environment.List"] = lambda _: {"rows": [], "errors": []}
    assert prlctl.main(["list", "-j"]) == 0
    assert capsys.readouterr().out == "[\n\n]\n"


REFUSED = [
    (prlctl, [], 1, "", "Usage: prlctl ACTION"),
    (prlctl, ["frobnicate"], 1, "Unrecognized action: frobnicate", ""),
    (prlctl, ["migrate", "a", "b"], 255, "not supported yet", ""),
    (prlctl, ["list", "-o", "nonsense"], 1, "Unknown field: nonsense", ""),
    (prlctl, ["list", "-s", "nonsense"], 1, "nonsense is an invalid field name", ""),
    (prlctl, ["list", "nobody"], 255, "Failed to get VM config: ", ""),
    (prlctl, ["status", "nobody"], 255, "could not be found", ""),
    (prlctl, ["start"], 1, "is not specified", ""),
    (prlctl, ["start", "web", "--quick"], 1, "Unrecognized option: --quick", ""),
    (prlctl, ["list", "-l", "root@elsewhere"], 253, "only the local node", ""),
    (prlctl, ["create", "x"], 255, "virtual machines are not supported yet", ""),
    (prlctl, ["create", "x", "--vmtype", "jail"], 1, "--vmtype", ""),
    (prlctl, ["clone", "db"], 1, "the --name option is not specified", ""),
    (prlctl, ["move", "db", "--dst", "./here"], 1, "relative path", ""),
    (prlctl, ["set", "db"], 1, "No options are specified", ""),
    (prlctl, ["set", "db", "--nonsense", "1"], 1, "Unrecognized option: --nonsense", ""),
    (prlctl, ["exec", "db"], 1, "Incorrect exec command", ""),
    (prlsrvctl, ["net", "list"], 255, "not supported yet", ""),
    (prlsrvctl, ["nonsense"], 1, "Unrecognized action", ""),
    (vzctl, [], 20, "", "Usage: vzctl"),
    (vzctl, ["frobnicate", "1"], 20, "Bad command: frobnicate", ""),
    (vzctl, ["start"], 21, "ctid is not given", ""),
    (vzctl, ["start", "nobody"], 21, "Invalid ctid is specified: nobody", ""),
    (vzctl, ["start", "999"], 14, "Container configuration file does not exist", ""),
    (vzctl, ["snapshot", "101"], 233, "not supported yet", ""),
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


def test_statistics(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Environment.Statistics"] = lambda _: {
        "statistics": [{"uuid": A, "rows": [{"name": "guest.ram.usage", "value": "12"}]}]
    }
    assert prlctl.main(["statistics", "-a", "--filter", "guest.*"]) == 0
    assert capsys.readouterr().out == f"{{{A}}}\n\tguest.ram.usage:\t12\n"
    assert prlctl.main(["statistics", "web"]) == 0
    assert capsys.readouterr().out == "\tguest.ram.usage:\t12\n"


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


def test_templates(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Template.List"] = lambda _: {
        "rows": [
            {"os": "debian-12-x86_64", "app": None, "summary": "Debian 12", "cached": True},
            {"os": "debian-12-x86_64", "app": "mc", "summary": "A file manager", "cached": False},
        ]
    }
    assert prlsrvctl.main(["cttemplate", "list"]) == 0
    compare("prlsrvctl-cttemplate", capsys.readouterr().out)
    assert prlsrvctl.main(["cttemplate", "list", "-j"]) == 0
    compare("prlsrvctl-cttemplate-j", capsys.readouterr().out)
