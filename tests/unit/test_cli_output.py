"""What the lists and reports of the command lines print, against a vzd of the test's own.

Golden files stand in tests/unit/golden; `PYVZ_REGEN=1 pytest tests/unit/test_cli_output.py
tests/unit/test_cli_verbs.py` writes them anew.
"""

from __future__ import annotations

import time

import pytest
from cli_fake import FakeServer
from cli_world import A, B, compare, server

from pyvz.cli import prlctl, prlsrvctl, vzctl, vzlist

__all__ = ["server"]

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


def test_statistics(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.handlers["Environment.Statistics"] = lambda _: {
        "statistics": [{"uuid": A, "rows": [{"name": "guest.ram.usage", "value": "12"}]}]
    }
    assert prlctl.main(["statistics", "-a", "--filter", "guest.*"]) == 0
    assert capsys.readouterr().out == f"{{{A}}}\n\tguest.ram.usage:\t12\n"
    assert prlctl.main(["statistics", "web"]) == 0
    assert capsys.readouterr().out == "\tguest.ram.usage:\t12\n"


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
