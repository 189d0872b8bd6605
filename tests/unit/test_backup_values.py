"""Manifests and ids of backups as values: nothing that is read is believed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.backup.manifest import Disk, File, Manifest, parse_id
from pyvz.errors import BackupDamaged, BadValue

CHAIN = "9c7c1f62-0a3e-4a41-8b6e-2f3b4c1d5e6f"
HASH = "ab" * 32
MANIFEST = Manifest(
    chain=CHAIN, number=2, uuid="1f2e3d4c-0000-4000-8000-00000000000a", envid="101", name="ct1",
    kind="CT", home="/vz/private/x", host="node", server="s", owner="root", created=1.5,
    description="", stored=7, files=(File("ve.conf", 0o644, 'NAME="ct1"\n'),),
    disks=(Disk("root.hdd", "image", "ploop", 1 << 30, None, (HASH, "")),),
)  # fmt: skip


def test_manifest_comes_back() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), source="x") == MANIFEST
    assert MANIFEST.tag == f"{{{CHAIN}}}.2"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"chain": "../x"},
        {"number": "2"},
        {"extra": 1},
        {"files": [{"path": "../ve.conf", "mode": 0, "text": ""}]},
        {"files": [{"path": "/etc/passwd", "mode": 0, "text": ""}]},
        {"files": 3},
        {"disks": [{**MANIFEST.disks[0]._asdict(), "pages": ["../../x"]}]},
        {"disks": [{**MANIFEST.disks[0]._asdict(), "name": "a/b"}]},
        {"disks": [{**MANIFEST.disks[0]._asdict(), "size": -1}]},
        {"disks": [{**MANIFEST.disks[0]._asdict(), "form": "other"}]},
    ],
)
def test_manifest_is_not_believed(change: dict[str, object]) -> None:
    raw = json.loads(MANIFEST.to_json()) | change
    with pytest.raises(BackupDamaged, match="here"):
        Manifest.from_json(json.dumps(raw), source="here")


@given(st.text())
def test_manifest_of_anything(text: str) -> None:
    with pytest.raises(BackupDamaged):
        Manifest.from_json(text, source="x")


def test_ids() -> None:
    assert parse_id(f"{{{CHAIN}}}.12") == f"{CHAIN}.12"
    assert parse_id(CHAIN.upper()) == parse_id(f"{CHAIN}.1") == CHAIN
    for wrong in ("", "ct1", f"{CHAIN}.", f"{CHAIN}.x", f"{CHAIN}/..", "-" * 36):
        with pytest.raises(BadValue):
            parse_id(wrong)
