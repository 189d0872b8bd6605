"""Checkpoints.json, and what clients may ask of checkpoints and backups."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from pyvz.errors import AlreadyExists, BadValue, CheckpointNotFound, StorageError
from pyvz.gateway import backupxml, checkpointxml, domainevents
from pyvz.gateway.domain import OFF, Domain
from pyvz.gateway.failure import Failure
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.event import VM_BLOCK_JOB, Event
from pyvz.model.status import Status
from pyvz.operations.machinepush import Copy
from pyvz.store import checkpoints, copies, pulls
from pyvz.store.checkpoints import Checkpoint, Checkpoints
from pyvz.store.copies import Copying
from pyvz.store.pulls import Export, Pull, Server
from pyvz.vm import moment
from pyvz.vm.moment import Bitmap
from pyvz.vm.monitor import Monitor

ONE, TWO, THREE = (Checkpoint(name, 1, ("hdd0",)) for name in ("one", "two", "three"))
ALL = Checkpoints((ONE, TWO, THREE))
DISKS = "name=hdd0,iface=scsi,position=0,format=qcow2,size=65536,image=harddisk.hdd"


def test_they_are_a_line() -> None:
    assert ALL.before("one") is None
    assert ALL.before("three") == TWO
    assert ALL.after("one") == (TWO, THREE)
    assert ALL.without(frozenset({"two"})).before("three") == ONE
    assert ALL.changed(TWO._replace(description="x")).get("two").description == "x"
    with pytest.raises(CheckpointNotFound):
        ALL.after("four")
    with pytest.raises(AlreadyExists):
        ALL.added(TWO)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 201, "pyvz-backup-1", "a\nb"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(BadValue):
        ALL.added(Checkpoint(name, 1, ("hdd0",)))


def test_no_more_than_qemu_bears() -> None:
    full = Checkpoints(tuple(Checkpoint(str(number), 1, ()) for number in range(256)))
    with pytest.raises(BadValue, match="256"):
        full.added(ONE)


def test_the_file(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path) == Checkpoints()
    kept = ALL.added(Checkpoint("four", 2, ("hdd0", "hdd3"), "text", "<domain/>"))
    checkpoints.save(tmp_path, kept)
    assert checkpoints.load(tmp_path) == kept
    checkpoints.save(tmp_path, Checkpoints())
    assert not (tmp_path / checkpoints.NAME).exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"checkpoints": 1}', '{"checkpoints": [{}]}',
        '{"checkpoints": [{"name": "a/b", "created": 1, "disks": [], "description": "",'
        ' "about": ""}]}',
        '{"checkpoints": [{"name": "a", "created": 1, "disks": ["../x"], "description": "",'
        ' "about": ""}]}',
    ],
)  # fmt: skip
def test_a_file_of_others(tmp_path: Path, text: str) -> None:
    (tmp_path / checkpoints.NAME).write_text(text)
    with pytest.raises(StorageError):
        checkpoints.load(tmp_path)


@pytest.fixture
def found(tmp_path: Path) -> Domain:
    env = Environment("6b3f0000-0000-4000-8000-000000000001", "", "vm1", Kind.VM, tmp_path)
    config = Config.parse({"VM_DRIVES": DISKS})
    return Domain(env, config, Status.RUNNING, OFF, {})


def test_a_checkpoint_that_is_asked_for(found: Domain) -> None:
    item = checkpointxml.read("<domaincheckpoint><name>one</name></domaincheckpoint>", found)
    assert (item.name, item.disks) == ("one", ("hdd0",))
    told = checkpointxml.written(found, item, TWO, {"hdd0": Bitmap(True, 65536)})
    assert told.findtext("parent/name") == "two"
    row = told.find("disks/disk")
    assert row is not None
    assert row.attrib == {
        "name": "sda", "checkpoint": "bitmap", "bitmap": "one", "size": "65536",
    }  # fmt: skip


@pytest.mark.parametrize(
    "part",
    [
        "<memory/>", "<disks><disc name='sda'/></disks>", "<disks><disk name='sdb'/></disks>",
        "<disks><disk name='sda' checkpoint='maybe'/></disks>",
        "<disks><disk name='sda' bitmap='other'/></disks>",
        "<disks><disk name='sda'><source/></disk></disks>",
    ],
)  # fmt: skip
def test_what_no_checkpoint_is(found: Domain, part: str) -> None:
    with pytest.raises(Failure):
        checkpointxml.read(f"<domaincheckpoint>{part}</domaincheckpoint>", found)


def test_a_backup_that_is_asked_for(found: Domain) -> None:
    text = """<domainbackup><incremental>one</incremental><disks><disk name='{}' {}>
        <target file='/to/it'/><driver type='{}'/></disk></disks></domainbackup>"""
    part = Copy("hdd0", Path("/to/it"), "qcow2", "one")
    assert backupxml.read(text.format("sda", "", "qcow2"), found, reuse=False) == (part,)
    whole = text.format("sda", "backupmode='full'", "raw")
    assert backupxml.read(whole, found, reuse=False) == (Copy("hdd0", Path("/to/it"), "raw"),)
    told = backupxml.written(found, (part,))
    assert backupxml.read(told, found, reuse=False) == (part,)
    for wrong in (
        text.format("sda", "", "vmdk"), text.format("sda", "type='block'", "raw"),
        text.format("sda", "backup='no'", "raw"), text.format("sda", "exportname='x'", "raw"),
        text.format("sda", "backupmode='half'", "raw"), text.replace("/to/it", "it"),
        text.format("sda", "", "raw").replace("<domainbackup>", "<domainbackup mode='up'>"),
    ):  # fmt: skip
        with pytest.raises(Failure):
            backupxml.read(wrong, found, reuse=False)


PULL = """<domainbackup mode='pull'>{}<disks><disk name='sda'{}>{}</disk></disks></domainbackup>"""


def test_a_backup_that_is_pulled(found: Domain, tmp_path: Path) -> None:
    whole = Pull(Server(host="127.0.0.1"), (Export("hdd0", "sda"),))
    assert backupxml.read("<domainbackup mode='pull'/>", found, reuse=False) == whole
    server = "<incremental>one</incremental><server transport='unix' socket='/to/it'/>"
    text = PULL.format(server, " exportname='x'", "<scratch file='/scratch'/>")
    part = Pull(Server("/to/it"), (Export("hdd0", "x", "one", "backup-sda", "/scratch"),))
    assert backupxml.read(text, found, reuse=False) == part
    kept = part._replace(exports=(part.exports[0]._replace(reuse=True),))
    assert backupxml.read(text, found, reuse=True) == kept
    address = Pull(Server(host="::1", port=10900), part.exports)
    for each in (whole._replace(server=Server(host="::1", port=7)), part, address):
        assert backupxml.read(backupxml.written_pull(found, each), found, reuse=False) == each
    assert pulls.load(tmp_path) is None
    pulls.save(tmp_path, part)
    assert pulls.load(tmp_path) == part
    (tmp_path / pulls.NAME).write_text('{"server": {}')
    assert pulls.load(tmp_path) is None


@pytest.mark.parametrize(
    ("server", "attributes", "parts"),
    [
        ("<server tls='yes'/>", "", ""), ("<server transport='rdma'/>", "", ""),
        ("<server transport='unix' socket='it'/>", "", ""), ("<server port='70000'/>", "", ""),
        ("<server port='+1'/>", "", ""), ("<server fd='3'/>", "", ""),
        ("", " exportname='a&#10;b'", ""), ("", "", "<target file='/x'/>"),
        ("", "", "<scratch file='x'/>"), ("", " type='block'", "<scratch dev='/x'/>"),
        ("", "", "<driver type='raw'/>"), ("", " backup='no'", ""),
        ("", " backupmode='incremental'", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_pulled(found: Domain, server: str, attributes: str, parts: str) -> None:
    with pytest.raises(Failure):
        backupxml.read(PULL.format(server, attributes, parts), found, reuse=False)


def test_clients_know_disks_by_their_places(found: Domain, tmp_path: Path) -> None:
    """A block job is told twice: of the name on the bus, and of the image."""
    data = {"device": "hdd0", "type": "stream", "state": "completed"}
    told = list(domainevents.told(Event(0.0, VM_BLOCK_JOB, "uuid", data)))
    first, second = domainevents.of_disks(told, found)
    assert first.body == {"dst": "sda", "type": 1, "status": 0}
    assert (second.number, second.nested) == (domainevents.BLOCK_JOB_OF_PATH, True)
    assert second.body["path"].startswith(str(tmp_path))
    other = list(domainevents.told(Event(0.0, VM_BLOCK_JOB, "uuid", data | {"device": "x"})))
    assert domainevents.of_disks(other, found) == other


def test_a_copy_that_is_under_way(tmp_path: Path) -> None:
    assert copies.load(tmp_path) is None
    image = tmp_path / "image"
    image.touch()
    for made in (str(image), ""):
        copies.save(tmp_path, Copying("hdd0", made))
        found = copies.load(tmp_path)
        assert found == Copying("hdd0", made)
        found.remove()
        assert not image.exists()
    (tmp_path / copies.NAME).write_text("{}")
    assert copies.load(tmp_path) is None


class Talk:
    """A QEMU that has one disk with bitmaps, and no jobs."""

    def __init__(self, *bitmaps: dict[str, object]) -> None:
        self.bitmaps, self.removed = bitmaps, list[object]()

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        if command == "block-dirty-bitmap-remove":
            assert arguments is not None
            self.removed.append(arguments["name"])
        nodes = [{"node-name": "hdd0", "dirty-bitmaps": self.bitmaps}]
        return nodes if command == "query-named-block-nodes" else []


def row(name: str, *, kept: bool, recording: bool = True, torn: bool = False) -> dict[str, object]:
    words = {"name": name, "recording": recording, "persistent": kept, "count": 7}
    return words | ({"inconsistent": True} if torn else {})


def test_which_bitmaps_can_be_relied_upon() -> None:
    """One in memory as well: it is there only while the QEMU lives that began it."""
    talk = Talk(
        row("kept", kept=True),
        row("memory", kept=False),
        row("torn", kept=True, torn=True),
        row("still", kept=False, recording=False),
    )
    found = moment.every_bitmap(talk.execute, "hdd0")
    good = {name for name, each in found.items() if each.good}
    assert good == {"kept", "memory"}
    assert moment.every_bitmap(talk.execute, "hdd1") == {}


def test_only_copies_of_bitmaps_are_taken_away() -> None:
    """A checkpoint of another disk, in memory, may be called as the copy that a client named."""
    copy, other = row("x", kept=False, recording=False), row("x", kept=False)
    talk = Talk(copy)
    moment.end(cast("Monitor", talk), ("x",))
    assert talk.removed == ["x"]
    talk = Talk(other)
    moment.end(cast("Monitor", talk), ("x",))
    assert talk.removed == []


def test_a_bitmap_is_kept_where_it_can_be() -> None:
    data = {"node": "hdd0", "name": "x", "persistent": False}
    wanted = {"type": "block-dirty-bitmap-add", "data": data}
    assert moment.added("hdd0", moment.Mark("x", kept=False)) == wanted
    assert moment.added("hdd0", moment.Mark("x"))["data"]["persistent"] is True
