"""The API as it is published: names, permissions, errors, texts; and the daemon's small parts."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import varlinksignature

from pyvz import errors
from pyvz.cli import client
from pyvz.daemon import access, autostart, describe, log, replies
from pyvz.daemon.access import READABLE, Access, Caller, access_of, allowed
from pyvz.daemon.service import INTERFACES
from pyvz.errors import VZError
from pyvz.model.secret import Secret

TOP = Path(__file__).resolve().parents[2]

# The methods of docs/design/contracts.md that answer with a stream.
# They change nothing, but open any file that they are told: for root only.
ROOT_QUERIES = {
    f"io.pyvz.Image.{name}" for name in ("Snapshots", "Info", "Usage", "Estimate", "List", "Open")
}
ROOT_QUERIES |= {"io.pyvz.Pool.List", "io.pyvz.Hdd.Info", "io.pyvz.Machine.Capture"}
SESSIONS = {"SignalSession", "Console", "Exec", "Receive", "Serve"}
STREAMS = {
    "Hdd": "Convert",
    "Image": "Init Resize Check FsCheck Convert Copy Discard Reserve",
    "Environment": "Create Start Stop Restart Reset Resume Delete Clone Move Exec",
    "Checkpoint": "Suspend Restore",
    "Migration": "Migrate",
    "Node": "Events Autostop",
    "Storage": "Snapshot SnapshotSwitch SnapshotDelete Compact Convert",
    "Backup": "Create Delete Restore Mount Verify",
    "Template": "CreateCache UpdateCache RemoveCache Install Remove Update Status Clean"
    " LocalInstall InstallTemplate RemoveTemplate",
}


def _methods() -> dict[str, Any]:
    return {
        f"{interface.name}.{name}": varlinksignature(method)
        for interface in INTERFACES
        for name, method in inspect.getmembers(interface)
        if varlinksignature(method) is not None
    }


def test_readable_methods_exist_and_only_look() -> None:
    methods = _methods()
    for name in READABLE:
        if name.startswith("io.pyvz."):
            assert name in methods
            parameters = methods[name].parameter_type.as_varlink
            assert "origin" not in parameters  # which every mutating method has


def test_every_stream_needs_more() -> None:
    methods = _methods()
    expected = {
        f"io.pyvz.{interface}.{name}"
        for interface in STREAMS
        for name in STREAMS[interface].split()
    }
    assert {name for name, signature in methods.items() if signature.more} == expected


def test_mutating_methods_say_who_asks_and_how_long_to_wait() -> None:
    for name, signature in _methods().items():
        own = name in READABLE or name.startswith("io.pyvz.Node.") or name in ROOT_QUERIES
        if own or name.rpartition(".")[2] in SESSIONS:
            continue
        assert "origin: ?string, timeout: ?float" in signature.parameter_type.as_varlink, name


def test_published_descriptions_are_current() -> None:
    """Write them anew with: python -m pyvz.daemon.describe"""
    for name, text in describe.descriptions().items():
        assert (TOP / "docs/varlink" / f"{name}.varlink").read_text(encoding="utf-8") == text


def test_every_error_travels_with_its_class_and_text() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 30
    for kind in kinds:
        reply = replies.error_reply(kind("what", details="more\nlines", hint="do"))
        error = client.error_from(reply.name, reply.parameters)
        assert type(error) is kind
        assert (error.message, error.details, error.hint) == ("what", "more\nlines", "do")


def test_a_class_of_another_module_travels_as_its_base() -> None:
    class Special(errors.Locked):
        pass

    assert replies.error_reply(Special("x")).name == "io.pyvz.Error.Locked"


def test_permissions() -> None:
    root = Caller(1, 0, frozenset({0}))
    reader = Caller(1, 1000, frozenset({1000, 77}))
    stranger = Caller(1, 1000, frozenset({1000}))
    assert access_of(root, None) is Access.FULL
    assert access_of(reader, 77) is Access.READ
    assert access_of(reader, None) is Access.NONE
    assert access_of(stranger, 77) is Access.NONE
    assert allowed(Access.READ, "io.pyvz.Environment.List")
    assert not allowed(Access.READ, "io.pyvz.Environment.Start")
    assert not allowed(Access.READ, "io.pyvz.Environment.Console")
    assert not allowed(Access.NONE, "io.pyvz.Node.Ping")
    assert not allowed(Access.NONE, "org.varlink.service.GetInfo")


def test_secrets_are_not_shown() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2")
    assert secret != "hunter2"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_log_values_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pyvz.operation"):
        log.operation(verb="create", ve="a b\nresult=ok", origin=None, result="ok", seconds=0.06249)
    line = caplog.records[0].getMessage()
    assert line == 'verb=create ve="a b\\nresult=ok" result=ok seconds=0.062'


def test_log_file_follows_rotation(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("pyvz").level)
    try:
        log.configure(tmp_path, stderr=False, debug=False)
        log.operation(verb="one", result="ok")
        (tmp_path / "vzd.log").rename(tmp_path / "vzd.log.1")
        log.operation(verb="two", result="Locked")
        log.reopen()
    finally:
        for handler in set(root.handlers) - set(before[0]):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before[1])
        logging.getLogger("pyvz").setLevel(before[2])
        logging.raiseExceptions = True
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(
        stamp + " INFO pyvz.operation verb=one result=ok\n", (tmp_path / "vzd.log.1").read_text()
    )
    assert re.fullmatch(
        stamp + " WARNING pyvz.operation verb=two result=Locked\n",
        (tmp_path / "vzd.log").read_text(),
    )
    assert (tmp_path / "vzd.log").stat().st_mode & 0o777 == 0o640


def test_autostart_is_due_once_per_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autostart, "boot_id", lambda: "boot-1")
    assert autostart.due(tmp_path)
    assert not autostart.due(tmp_path)
    monkeypatch.setattr(autostart, "boot_id", lambda: "boot-2")
    assert autostart.due(tmp_path)


def test_reader_group_is_vz(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(access.grp, "getgrnam", unknown)
    assert access.reader_group() is None


def test_vzerror_is_always_known() -> None:
    assert VZError in replies.ERRORS
