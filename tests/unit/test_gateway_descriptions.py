"""Descriptions of everything but domains: read whole, or refused in words, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvz.errors import VZError
from pyvz.gateway import (
    backupxml,
    calls_blockjob,
    calls_processor,
    calls_snapshot,
    calls_volume,
    checkpointxml,
    netdefine,
)
from pyvz.gateway.domain import OFF, Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.notes import parsed
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.vm.processors import Processors

DISKS = "name=hdd0,iface=scsi,position=0,format=qcow2,size=65536,image=harddisk.hdd"
FOUND = Domain(
    Environment("6b3f0000-0000-4000-8000-000000000001", "", "vm1", Kind.VM, Path("/nowhere")),
    Config.parse({"VM_DRIVES": DISKS}),
    Status.RUNNING, OFF, {},
)  # fmt: skip
KNOWN = Processors(
    {"old": frozenset({"mmx"})}, frozenset({"mmx", "sse"}), frozenset({"mmx", "sse"})
)
READERS: dict[str, Callable[[str], Any]] = {
    "network": netdefine.read,
    "range": netdefine.dhcp_range,
    "volume": calls_volume.wanted_of,
    "domaincheckpoint": lambda text: checkpointxml.read(text, FOUND),
    "domainbackup": lambda text: backupxml.read(text, FOUND, reuse=False),
    "domainsnapshot": calls_snapshot.wanted_of,
    "disk": calls_blockjob.destination_of,
    "cpu": lambda text: calls_processor.features_of(parsed(text, "description"), KNOWN),
}
TAGS = (
    "name", "uuid", "forward", "bridge", "ip", "dhcp", "range", "capacity", "allocation", "target",
    "format", "path", "backingStore", "encryption", "disks", "disk", "scratch", "server", "driver",
    "incremental", "description", "memory", "source", "model", "feature", "arch", "unknown",
)  # fmt: skip
NAMES = (
    "name", "mode", "dev", "file", "type", "address", "netmask", "prefix", "start", "end", "unit",
    "snapshot", "checkpoint", "backup", "transport", "socket", "port", "tls", "policy",
    "exportname", "incremental", "backupmode", "family",
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(
        ["sda", "yes", "no", "pull", "push", "unix", "tcp", "/x", "x", "10", "-1", "9" * 40, "",
         "10.0.0.1", "10.0.0.90", "24", "255.0.0.0", "fd00::1", "nat", "qcow2", "raw", "file",
         "external", "internal", "GiB", "x86_64", "old", "mmx", "٣"]
    ),
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8),
)  # fmt: skip


def _element(parts: tuple[str, dict[str, str], str, list[str]]) -> str:
    def escaped(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")

    tag, attributes, text, children = parts
    words = "".join(f' {name}="{escaped(value)}"' for name, value in attributes.items())
    return f"<{tag}{words}>{escaped(text)}{''.join(children)}</{tag}>"


ATTRIBUTES = st.dictionaries(st.sampled_from(NAMES), WORDS, max_size=4)
ELEMENTS = st.recursive(
    st.tuples(st.sampled_from(TAGS), ATTRIBUTES, WORDS, st.just([])).map(_element),
    lambda inner: st.tuples(
        st.sampled_from(TAGS), ATTRIBUTES, WORDS, st.lists(inner, max_size=4)
    ).map(_element),
    max_leaves=10,
)


def _read(kind: str, text: str) -> None:
    """Read it as a call would: nothing but an error with words may come of it."""
    try:
        READERS[kind](text)
    except VZError as error:
        refused = error
    else:
        return
    assert refused.message


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(attributes=ATTRIBUTES, body=st.lists(ELEMENTS, max_size=4))
def test_any_elements(kind: str, attributes: dict[str, str], body: list[str]) -> None:
    _read(kind, _element((kind, attributes, "", body)))


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "text",
    [
        "", "<", "<other/>", "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><{}><name>&a;</name></{}>",
        "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><{}>&a;</{}>",
        "<{}>" + "<a>" * 3000,
    ],
)  # fmt: skip
def test_what_is_no_description(kind: str, text: str) -> None:
    with pytest.raises(Failure):
        READERS[kind](text.replace("{}", kind))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("volume", "<target><encryption format='luks'/></target>"),
        ("volume", "<target><clusterSize>4</clusterSize></target>"),
        ("volume", "<secret/>"),
        ("domainsnapshot", "<disks><disk name='sda' snapshot='external'/></disks>"),
        ("domainsnapshot", "<disks><disk name='sda' snapshot='no'/></disks>"),
        ("domainsnapshot", "<disks><disk name='sda'><source file='/x'/></disk></disks>"),
        ("domainsnapshot", "<memory snapshot='external' file='/x'/>"),
        ("domainsnapshot", "<cookie/>"),
    ],
)
def test_nothing_is_dropped_in_silence(kind: str, text: str) -> None:
    with pytest.raises(Failure):
        READERS[kind](f"<{kind}><name>a</name><capacity>1</capacity>{text}</{kind}>"
                      if kind == "volume" else f"<{kind}>{text}</{kind}>")  # fmt: skip
