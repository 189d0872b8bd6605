"""linux/features.py on this very machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pyvz.linux import features
from pyvz.linux.mount import holding_mount, mounts


def test_probe_is_quick_and_agrees_with_the_machine(tmp_path):
    begun = time.monotonic()
    found = features.probe(tmp_path / "run", [tmp_path / "vz/private"])
    assert time.monotonic() - begun < 10  # 0.02 s on an idle machine
    assert found.kernel.value == os.uname().release
    v1 = any(entry.fstype == "cgroup" for entry in mounts())
    assert found.cgroup.value == ("v1" if v1 else "v2")
    assert bool(found.psi) == os.path.exists("/proc/pressure/memory")
    fstype = holding_mount("/").fstype
    assert fstype in found.idmapped
    assert found.can_idmap(fstype) == bool(found.idmapped[fstype])
    assert not found.can_idmap("vfat")


def test_every_row_has_a_word_and_a_reason(tmp_path):
    rows = features.probe(tmp_path).as_rows()
    assert len(rows) > 12
    assert all(label and word and reason for label, word, reason in rows)


def test_kept_until_the_next_boot(tmp_path, monkeypatch):
    first = features.probe(tmp_path)
    monkeypatch.setattr(features, "_probe", lambda places: 1 / 0)
    assert features.probe(tmp_path) == first


def test_other_boot_or_broken_file_is_probed_anew(tmp_path):
    first = features.probe(tmp_path)
    file = tmp_path / "features.json"
    stored = json.loads(file.read_text())
    stored["key"][1] = "another boot"
    stored["features"]["userns"] = ["wrong", "wrong"]
    file.write_text(json.dumps(stored))
    assert features.probe(tmp_path).userns == first.userns
    for junk in ("", "{}", "[1]", '{"key": 1}', "\0"):
        file.write_text(junk)
        assert features.probe(tmp_path).userns == first.userns


def test_without_the_programs_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(features.run.ENVIRONMENT, "PATH", "/nowhere")
    found = features.probe(tmp_path)
    assert not found.userns
    assert "not installed" in found.userns.reason


def test_places():
    assert not features.idmapped_at(Path("/proc"))
    answer = features.reflink_at(Path("/"))
    assert holding_mount("/").fstype in answer.reason
