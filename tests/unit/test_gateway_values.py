"""Values of the gateway: frames cut from what comes in, packed parts, events for clients."""

from __future__ import annotations

from itertools import pairwise
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.gateway import (
    domainevents,
    domaingrammar,
    domaintuning,
    failure,
    frame,
    machinedefine,
    xdr,
)
from pyvz.gateway.domainevents import ADDED, AGENT, BALLOON, BLOCK_JOB, METADATA, REMOVED, TRAY
from pyvz.gateway.domaintuning import Tuning
from pyvz.gateway.failure import Failure
from pyvz.gateway.frame import REMOTE, VERSION, BadFrame, Cutter, Frame, Status, Type
from pyvz.gateway.office import Job
from pyvz.model import event
from pyvz.model.config import Config
from pyvz.model.event import Event

FRAMES = [
    Frame(REMOTE, VERSION, number, Type.CALL, number, Status.OK, bytes(number * 7 % 50))
    for number in range(1, 9)
]


@given(st.lists(st.integers(0, 400), max_size=12))
def test_frames_come_out_as_they_went_in(cuts: list[int]) -> None:
    data = b"".join(each.to_bytes() for each in FRAMES)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    cutter, found = Cutter(), []
    for begin, end in pairwise(places):
        found += cutter.feed(data[begin:end])
    cutter.end()
    assert found == FRAMES


@given(st.binary(max_size=200))
def test_rubbish_is_a_bad_frame_or_the_beginning_of_one(data: bytes) -> None:
    cutter = Cutter(limit=1 << 10)
    try:
        for found in cutter.feed(data):
            assert len(found.payload) < 1 << 10
    except BadFrame:
        return
    if not data:
        cutter.end()


def test_the_middle_of_a_frame_is_no_end() -> None:
    cutter = Cutter()
    assert not list(cutter.feed(FRAMES[0].to_bytes()[:-1]))
    with pytest.raises(BadFrame, match="middle"):
        cutter.end()


def test_a_frame_above_the_limit_is_refused_by_its_head() -> None:
    head = frame.message(1, bytes(100)).to_bytes()[:28]
    with pytest.raises(BadFrame, match="impossible"):
        list(Cutter(limit=64).feed(head))


def test_a_packed_part_is_what_its_values_are() -> None:
    key = {"name": "web", "uuid": "6b7d6c0e-3f35-4f4e-9a1e-0c6d1f5e9b31", "id": 7}
    packed = xdr.Packed(xdr.pack(xdr.codec("domain"), key))
    answer = xdr.structure("domains:*domain ret:u")
    one = xdr.pack(answer, {"domains": [packed, key], "ret": 2})
    assert one == xdr.pack(answer, {"domains": [key, key], "ret": 2})
    assert xdr.unpack(answer, one)["domains"] == [key, key]


@pytest.mark.parametrize(
    ("name", "data", "number", "body"),
    [
        (event.METADATA, {"type": "2", "uri": "urn:x"}, METADATA, {"type": 2, "nsuri": "urn:x"}),
        (event.METADATA, {"type": "1", "uri": ""}, METADATA, {"type": 1, "nsuri": None}),
        (event.VM_AGENT, {"state": "connected"}, AGENT, {"state": 1, "reason": 2}),
        (event.VM_AGENT, {"state": "disconnected"}, AGENT, {"state": 2, "reason": 2}),
        (event.VM_TRAY, {"device": "cdrom0", "state": "open"}, TRAY,
         {"devAlias": "cdrom0", "reason": 0}),
        (event.VM_BALLOON, {"bytes": "1048576"}, BALLOON, {"actual": 1024}),
        (event.VM_BALLOON, {"bytes": "-1"}, BALLOON, {"actual": 0}),
        (event.VM_BLOCK_JOB, {"device": "hdd0", "type": "mirror", "state": "ready"}, BLOCK_JOB,
         {"dst": "hdd0", "type": 2, "status": 3}),
        (event.VM_BLOCK_JOB, {"device": "hdd0", "type": "new", "state": "odd"}, BLOCK_JOB,
         {"dst": "hdd0", "type": 0, "status": 1}),
    ],
)  # fmt: skip
def test_an_event_is_one_message(
    name: str, data: dict[str, object], number: int, body: dict[str, object]
) -> None:
    (told,) = domainevents.told(Event(0.0, name, "uuid", data))
    assert (told.number, dict(told.body)) == (number, body)


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("ve-resume", {}, [(4, 0)]), ("ve-resume", {"was": "suspended"}, [(2, 2)]),
        ("ve-resume", {"was": "snapshot"}, [(2, 3)]), ("ve-stop", {"reason": "oom"}, [(5, 2)]),
        ("ve-snapshot-switch", {}, []),
        ("ve-snapshot-switch", {"was": "running", "is": "stopped"}, [(5, 6)]),
        ("ve-snapshot-switch", {"was": "running", "is": "running"}, [(5, 6), (2, 3)]),
        ("ve-snapshot-switch", {"was": "stopped", "is": "running"}, [(2, 3)]),
    ],
)  # fmt: skip
def test_what_is_told_of_a_life(
    name: str, data: dict[str, object], wanted: list[tuple[int, int]]
) -> None:
    assert domainevents.life(Event(0.0, name, "uuid", data)) == wanted


def test_a_change_tells_of_devices_and_texts() -> None:
    data = {"fields": "identity.description machine.drives", "added": "hdd1", "removed": "eth0"}
    found = [each.number for each in domainevents.told(Event(0.0, event.CONFIG, "uuid", data))]
    assert found == [domainevents.LIFECYCLE, METADATA, REMOVED, ADDED]


def test_a_job_that_has_ended_says_how() -> None:
    told = domainevents.ended(Job(1, "migrate", "web", 2.5, 10, 20, "B", succeeded=False))
    params = {each.field: each.value for each in told.body["params"]}
    assert params["operation"] == 5
    assert params["time_elapsed"] == 2500
    assert params["success"] == 0


@pytest.mark.parametrize(
    ("cpu", "model"),
    [
        ("", ""),
        ("<cpu mode='host-passthrough' migratable='on'/>", ""),
        ("<cpu mode='host-model' check='partial'/>", ""),
        ("<cpu mode='custom' match='exact'><model fallback='allow'>Westmere</model></cpu>",
         "Westmere"),
        ("<cpu><model>Westmere</model></cpu>", "Westmere"),
    ],
)  # fmt: skip
def test_a_processor_is_read(cpu: str, model: str) -> None:
    assert machinedefine.read(f"<domain type='vz'><os/>{cpu}</domain>").cpu == model


@pytest.mark.parametrize(
    "part",
    [
        "<cpu mode='custom'><model>Westmere</model><feature policy='forbid' name='aes'/></cpu>",
        "<cpu mode='custom' match='minimum'><model>Westmere</model></cpu>",
        "<cpu mode='custom'><topology sockets='1' cores='2' threads='2'/></cpu>",
        "<devices><channel type='tcp'><target name='org.other.0'/></channel></devices>",
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(part: str) -> None:
    top = machinedefine.parsed(f"<domain type='vz'>{part}</domain>", "description")
    with pytest.raises(Failure, match=r"cpu|channel") as refused:
        domaingrammar.check(top, domaingrammar.MACHINE)
    assert refused.value.code == failure.UNSUPPORTED


def test_features_and_channels_are_read() -> None:
    channel = "<channel type='unix'><target type='virtio' name='{}'/></channel>"
    devices = "".join(
        channel.format(name) for name in ("org.qemu.guest_agent.0", "org.a.0", "org.b.0")
    )
    machine = machinedefine.read(
        "<domain type='vz'><os/><cpu mode='host-model'><feature policy='require' name='aes'/>"
        f"<feature policy='disable' name='tsc_adjust'/></cpu><devices>{devices}</devices></domain>"
    )
    assert machine.features == "require:aes disable:tsc-adjust"
    assert machine.channels == ("org.a.0", "org.b.0")
    for part in (
        "<cpu><feature policy='require' name='a,b'/></cpu>",
        "<devices><channel type='unix'><source mode='bind' path='/tmp/x'/><target name='org.a.0'/>"
        "</channel></devices>",
        "<devices><channel type='pty'><target name='org.a.0'/></channel></devices>",
    ):
        with pytest.raises(Failure):
            machinedefine.read(f"<domain type='vz'><os/>{part}</domain>")


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("", Tuning()),
        ("<cputune><shares>9</shares><quota>50000</quota></cputune>", Tuning(9, 100)),
        ("<cputune><global_quota>50000</global_quota></cputune>", Tuning(limit=50)),
        ("<cputune><period>50000</period><quota>-1</quota></cputune>", Tuning(limit=0)),
        ("<blkiotune><weight>1000</weight></blkiotune>", Tuning(priority=7)),
        ("<numatune><memory mode='strict' nodeset='0-1'/></numatune>", Tuning(nodes="0-1")),
    ],
)
def test_tuning_is_read(part: str, wanted: Tuning) -> None:
    top = machinedefine.parsed(f"<domain>{part}</domain>", "description")
    assert domaintuning.read(top, 2) == wanted


def test_tuning_that_is_there_is_not_set_again() -> None:
    config = Config.parse({"CPUUNITS": "9", "CPULIMIT": "50", "IOPRIO": "3", "NODEMASK": "0"})
    top = Element("domain")
    domaintuning.add(top, config)
    read = domaintuning.read(top, 2)
    assert read == Tuning(9, 50, 3, "0")
    assert domaintuning.options(read, config) == []
    assert domaintuning.options(Tuning(limit=0), config) == [("cpulimit", "0")]


def test_a_topology_is_that_of_the_processors() -> None:
    topology = "<cpu><topology sockets='{}' cores='2'/></cpu>"
    text = f"<domain type='vz'><os/><vcpu>4</vcpu>{topology}</domain>"
    assert machinedefine.read(text.format(2)).sockets == 2
    for sockets in (0, 1, "x"):
        with pytest.raises(Failure):
            machinedefine.read(text.format(sockets))
