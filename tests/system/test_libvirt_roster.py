"""What libvirt's clients are told from memory is what is so: whatever changes it, and at once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from libvirtpython import LibvirtPython, python
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "python", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh")

NAMES = "sorted(each.name() for each in connection.listAllDomains(0))"
STATS = "{d.name(): v['state.state'] for d, v in connection.getAllDomainStats(0, 0)}"
RUNNING, PAUSED, OFF = 1, 3, 5
NO_DOMAIN = 42
INVALID_ARGUMENT = 8


@pytest.fixture
def ct(world: World) -> World:
    world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "create", "other", "--vmtype", "ct", "--ostemplate", "busybox-1")
    return world


def told(python: LibvirtPython) -> tuple[int, int, bool]:
    """State by three ways: the domain's, the statistics', the list of those that run."""
    one, bulk = python("dom('web').state()[0]"), python(STATS)["web"]
    return one, bulk, "web" in python("[each.name() for each in connection.listAllDomains(1)]")


def test_what_prlctl_does(ct: World, python: LibvirtPython) -> None:
    for _ in range(2):
        assert told(python) == (OFF, OFF, False)
    for words, state in [
        ("start", RUNNING), ("pause", PAUSED), ("resume", RUNNING), ("stop --kill", OFF),
        ("mount", OFF), ("umount", OFF), ("start", RUNNING), ("restart", RUNNING),
    ]:  # fmt: skip
        verb, *options = words.split()
        ct.run("prlctl", verb, "web", *options)
        assert told(python) == (state, state, state != OFF), words
        assert told(python) == (state, state, state != OFF), words
    assert python("dom('other').state()[0]") == OFF
    number = python("dom('web').ID()")
    assert python(f"connection.lookupByID({number}).name()") == "web"
    ct.run("prlctl", "set", "web", "--memsize", "64M")
    assert python("dom('web').info()[1]") == 64 << 10
    assert "65536" in python("dom('web').XMLDesc(0)")
    ct.run("prlctl", "stop", "web", "--kill")
    assert python("dom('web').info()[1]") == 64 << 10


def test_one_that_dies(ct: World, python: LibvirtPython) -> None:
    ct.run("prlctl", "start", "web")
    assert told(python)[0] == RUNNING
    uuid = python("dom('web').UUIDString()")
    state = json.loads((ct.root / f"run/pyvz/state/{uuid}.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    python.until(f"dom('web').state()[0] == {OFF}")
    python.until("not connection.listAllDomains(1)")
    ct.run("prlctl", "start", "web", "--timeout", "60")
    assert told(python)[0] == RUNNING


def test_what_is_registered(ct: World, python: LibvirtPython) -> None:
    assert python(NAMES) == ["other", "web"]
    ct.run("prlctl", "set", "web", "--name", "shop")
    assert python(NAMES) == ["other", "shop"]
    assert python.fails("dom('web')")[0] == NO_DOMAIN
    python("shop = dom('shop')")
    home = Path(ct.run("prlctl", "list", "-H", "-o", "home", "shop").strip())
    ct.run("prlctl", "unregister", "shop")
    assert python(NAMES) == ["other"]
    assert python.fails("shop.state()")[0] == NO_DOMAIN
    ct.run("prlctl", "register", os.fspath(home), "--preserve-uuid")
    assert python(NAMES) == ["other", "shop"]
    assert python("shop.state()[0]") == OFF
    ct.run("prlctl", "create", "third", "--vmtype", "ct", "--ostemplate", "busybox-1")
    assert python(NAMES) == ["other", "shop", "third"]
    ct.run("prlctl", "delete", "third")
    assert python(NAMES) == ["other", "shop"]


def test_files_that_others_change(ct: World, python: LibvirtPython) -> None:
    """An editor that writes in place, a state that was saved by hand, defaults of the node."""
    assert python("dom('web').hasManagedSaveImage()") == 0
    home = Path(ct.run("prlctl", "list", "-H", "-o", "home", "web").strip())
    conf = home / "ve.conf"
    conf.write_text(conf.read_text() + 'HOSTNAME="by-hand"\n')
    assert python("dom('web').hostname()") == "by-hand"
    (home / "dump/Dump").mkdir(parents=True)
    assert python("dom('web').hasManagedSaveImage()") == 1
    (home / "dump/Dump").rmdir()
    assert python("dom('web').hasManagedSaveImage()") == 0
    assert python("dom('other').info()[3]") == os.cpu_count()
    shared = ct.root / "etc/vz/vz.conf"
    shared.write_text(shared.read_text() + 'CPUS="1"\n')
    assert python("dom('other').info()[3]") == 1


def test_what_clients_note(ct: World, python: LibvirtPython) -> None:
    """A title, in the description of a container and of a machine, asked before and after."""
    ct.run("prlctl", "create", "vm", "--vmtype", "vm", "--no-hdd")
    for name in ("web", "vm"):
        for title in ("first", "second"):
            assert f"<title>{title}</title>" not in python(f"dom('{name}').XMLDesc(0)")
            python(f"dom('{name}').setMetadata(1, '{title}', None, None, 2)")
            assert f"<title>{title}</title>" in python(f"dom('{name}').XMLDesc(0)")


def test_statistics_of_other_kinds(ct: World, python: LibvirtPython) -> None:
    """A question for kinds that are not there (64: perf) is not one for all, or for some."""
    for _ in range(2):
        assert python(STATS) == {"web": OFF, "other": OFF}
        assert python("[len(v) for d, v in connection.getAllDomainStats(64, 0)]") == [0, 0]
        enforced = "connection.getAllDomainStats({}, 1 << 31)"
        assert python("len(" + enforced.format(1) + ")") == 2
        assert python.fails(enforced.format(65))[0] == INVALID_ARGUMENT
