"""Three environments that a fake vzd knows, and the golden files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeServer, Parameters

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


def compare(name: str, text: str) -> None:
    """Compare with the golden file, or write it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PYVZ_REGEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
