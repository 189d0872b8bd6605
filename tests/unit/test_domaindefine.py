"""Descriptions of domains, well-formed and not: read whole, or refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.gateway import domaindefine, domaingrammar, failure, machinedefine
from pyvz.gateway.domaindefine import Wanted
from pyvz.gateway.failure import Failure

TAGS = (
    "domain", "name", "uuid", "memory", "vcpu", "os", "type", "devices", "filesystem", "source",
    "target", "interface", "mac", "ip", "link", "guest", "cputune", "shares", "metadata", "disk",
    "driver", "graphics", "boot", "title", "unknown", "address", "model",
)  # fmt: skip
NAMES = (
    "type", "name", "unit", "dir", "file", "network", "bridge", "address", "prefix", "state", "dev",
    "bus", "device", "port", "cpuset", "listen",
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(
        ["vz", "exe", "hvm", "template", "file", "network", "KiB", "GiB", "10", "-1", "9" * 40,
         "10.0.0.1", "/", "", "vnc", "cdrom", "disk", "qcow2", "raw", "block", "sda", "٣"]
    ),
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8),
)  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _element(parts: tuple[str, dict[str, str], str, list[str]]) -> str:
    tag, attributes, text, children = parts
    words = "".join(f' {name}="{_escaped(value)}"' for name, value in attributes.items())
    return f"<{tag}{words}>{_escaped(text)}{''.join(children)}</{tag}>"


ELEMENTS = st.recursive(
    st.builds(lambda tag, text: _element((tag, {}, text, [])), st.sampled_from(TAGS), WORDS),
    lambda inner: st.tuples(
        st.sampled_from(TAGS),
        st.dictionaries(st.sampled_from(NAMES), WORDS, max_size=3),
        WORDS,
        st.lists(inner, max_size=4),
    ).map(_element),
    max_leaves=12,
)
BODIES = st.lists(ELEMENTS, max_size=6).map("".join)


def _read(text: str) -> Wanted | None:
    """Read it as a call would: nothing but Failure may come of it."""
    try:
        found = domaindefine.read(text)
        if found.os_type == "hvm":
            machinedefine.read(text)
    except Failure as error:
        refused = error
    else:
        return found
    assert refused.code in {failure.XML, failure.UNSUPPORTED}
    assert refused.message
    return None


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    assert _read(text) is None


@given(BODIES)
def test_any_elements(body: str) -> None:
    _read(f"<domain type='vz'>{body}</domain>")


@given(BODIES, st.sampled_from(["exe", "hvm"]))
def test_any_devices(body: str, kind: str) -> None:
    found = _read(
        f"<domain type='vz'><name>a</name><os><type>{kind}</type></os>"
        f"<devices>{body}</devices></domain>"
    )
    assert found is None or found.name == "a"


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain type='vz'><name>&a;</name></domain>",
        "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><domain type='vz'>&a;</domain>",
        "<domain type='vz'>" + "<a>" * 3000,
        "<domain type='kvm'><name>a</name></domain>",
        "<domain type='vz'><name>a</name><os><type>exe</type></os><memtune/></domain>",
    ],
)
def test_dangerous_and_foreign_ones_are_refused(text: str) -> None:
    assert _read(text) is None


def _whole(grammar: str) -> Element:
    """An element for every row of a grammar."""
    top = Element("domain", type="vz")
    for line in grammar.splitlines():
        path = line.split()[0] if line[:1].strip() else ""
        at = top
        for tag in path.removesuffix("/**").split("/") if path else ():
            found = at.find(tag)
            at = SubElement(at, tag) if found is None else found
    return top


def _deep(grammar: str) -> set[str]:
    return {line.removesuffix("/**") for line in grammar.splitlines() if line.endswith("/**")}


def _walk(element: Element, path: str = "") -> Iterator[tuple[str, Element]]:
    yield path, element
    for each in element:
        yield from _walk(each, f"{path}/{each.tag}" if path else each.tag)


@pytest.mark.parametrize("grammar", [domaingrammar.CONTAINER, domaingrammar.MACHINE])
def test_whatever_is_not_in_the_grammar_is_refused_by_its_name(grammar: str) -> None:
    whole = _whole(grammar)
    domaingrammar.check(whole, grammar)
    places = [path for path, _ in _walk(whole) if path not in _deep(grammar)]
    assert len(places) > 30
    for number, place in enumerate(places):
        changed = deepcopy(whole)
        _, element = [each for each in _walk(changed) if each[0] not in _deep(grammar)][number]
        SubElement(element, "strange")
        with pytest.raises(Failure, match=f"<{place}/strange>" if place else "<strange>"):
            domaingrammar.check(changed, grammar)
        del element[-1]
        element.set("strange", "1")
        if place == "devices/graphics":
            continue  # any of its attributes is taken
        with pytest.raises(Failure, match=f"strange='1' of <{place or 'domain'}>"):
            domaingrammar.check(changed, grammar)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("<vcpu current='1'>2</vcpu>", "current of <vcpu>"),
        ("<q:commandline xmlns:q='urn:q'/>", "commandline"),
        ("<idmap><uid start='0' target='1' count='9'/></idmap>", "idmap"),
        ("<os><init>/bin/sh</init></os>", "/sbin/init"),
        ("<devices><interface type='network'><bandwidth/></interface></devices>", "bandwidth"),
        ("<devices><interface type='network'><mtu size='9000'/></interface></devices>", "'9000'"),
        ("<devices><disk type='file'/></devices>", "devices/disk"),
    ],
)  # fmt: skip
def test_what_a_container_cannot_have(part: str, words: str) -> None:
    inner = part if part.startswith("<os>") else f"<os><type>exe</type></os>{part}"
    inner = inner.replace("<os><init>", "<os><type>exe</type><init>")
    with pytest.raises(Failure) as caught:
        domaindefine.read(f"<domain type='vz'><name>a</name><memory>1024</memory>{inner}</domain>")
    assert caught.value.code == failure.UNSUPPORTED
    assert words in caught.value.message


def test_what_is_on_the_board_of_a_machine() -> None:
    def board(inside: str, devices: str = "") -> tuple[bool, bool, bool]:
        parts = f"<name>a</name><os{inside}</os><devices>{devices}</devices>"
        found = machinedefine.read(f"<domain type='vz'>{parts}</domain>")
        return found.efi, found.secure_boot, found.tpm

    kind = "<type>hvm</type>"
    secure = "<firmware><feature enabled='yes' name='secure-boot'/></firmware>"
    locked = machinedefine.read(
        "<domain type='vz'><memoryBacking><locked/></memoryBacking></domain>"
    )
    assert (locked.memory_lock, locked.hugepages) == (True, False)
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    assert board(f">{kind}") == (False, False, False)
    assert board(f" firmware='efi'>{kind}{secure}", tpm) == (True, True, True)
    assert board(f">{kind}<loader type='pflash' secure='yes'>x</loader>") == (True, True, False)
    assert not board(f" firmware='efi'>{kind}{secure.replace('yes', 'no')}")[1]


def test_one_limit_of_memory() -> None:
    """What changes counts: clients change what a domain has now, and leave its most as it is."""
    text = "<domain type='vz'><name>a</name><memory>{}</memory>{}<os><type>exe</type></os></domain>"
    both = domaindefine.read(text.format(1024, "<currentMemory>512</currentMemory>"))
    assert domaindefine.limit_of(domaindefine.read(text.format(1024, ""))) == 1024 << 10
    assert domaindefine.limit_of(both, 1024 << 10) == 512 << 10
    for present in (None, 2048 << 10):
        with pytest.raises(Failure, match="currentMemory"):
            domaindefine.limit_of(both, present)
