"""What a domain's description may consist of: a row for each element that is kept or understood.

    path below <domain>     attributes        name: any value; name=a|b: these only; *: any at all
    path/**                 whatever it holds: clients write it unasked, and it changes nothing here

Everything else, an element or an attribute, is refused by its name (code 67): nothing that a client
asks for is dropped in silence.  What the values mean is said in domaindefine and machinedefine.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element

from pyvz.gateway import failure
from pyvz.gateway.failure import Failure

_CARD: Final = """\
devices/interface                   type=network|bridge
devices/interface/source            network bridge portid
devices/interface/mac               address type
devices/interface/model             type
devices/interface/target            dev
devices/interface/guest             dev
devices/interface/ip                address family prefix
devices/interface/link              state=up|down
devices/interface/mtu               size=1500
devices/interface/boot              order
devices/interface/address/**
devices/interface/alias             name
"""
_HEAD: Final = """\
                                    type=vz|parallels id
name
uuid
title
description
metadata/**
memory                              unit
currentMemory                       unit
vcpu                                placement=static|auto cpuset current
cputune
cputune/shares
cputune/period
cputune/quota
cputune/global_period
cputune/global_quota
blkiotune
blkiotune/weight
numatune
numatune/memory                     mode=strict nodeset
on_poweroff
on_reboot
on_crash
clock/**
features/**
pm/**
os
os/type                             arch machine
os/boot                             dev
devices
devices/emulator
devices/graphics                    *
devices/graphics/listen             type address
devices/video/**
devices/console/**
devices/serial/**
devices/input/**
devices/controller/**
"""
CONTAINER: Final = f"""\
{_HEAD}{_CARD}
os/init
devices/filesystem                  type accessmode=passthrough
devices/filesystem/driver           type=ploop|path format=ploop
devices/filesystem/source           name file dir
devices/filesystem/target           dir
devices/filesystem/address/**
devices/filesystem/alias            name
"""
MACHINE: Final = f"""\
{_HEAD}{_CARD}
cpu  mode=custom|host-model|host-passthrough|maximum check migratable match=exact
cpu/model                           fallback
cpu/topology                        sockets dies=1 clusters=1 cores threads=1
cpu/feature                         policy=force|require|optional|disable name
memoryBacking
memoryBacking/hugepages
memoryBacking/locked
os                                  firmware=efi|bios
os/bootmenu                         enable=yes|no
os/loader/**
os/nvram/**
os/firmware/**
devices/disk                        type=file|block device=disk|cdrom
devices/disk/driver                 name=qemu type=qcow2|raw|ploop discard=unmap cache=none|default io=native|threads
devices/disk/source                 file dev index
devices/disk/target                 dev bus tray
devices/disk/backingStore
devices/disk/serial
devices/disk/readonly
devices/disk/boot                   order
devices/disk/address/**
devices/disk/alias                  name
devices/channel                     type=unix|pty|spicevmc
devices/channel/source/**
devices/channel/target              type=virtio name state
devices/channel/address/**
devices/channel/alias               name
devices/memballoon/**
devices/rng/**
devices/panic/**
devices/audio/**
devices/sound/**
devices/redirdev/**
devices/hub/**
devices/tpm                         model=tpm-crb|tpm-tis
devices/tpm/backend                 type=emulator version=2.0
devices/tpm/alias                   name
"""  # noqa: E501  a row is a line
_KINDS: Final = {CONTAINER: "a container", MACHINE: "a virtual machine"}


class _Row(NamedTuple):
    """What an element may have.  attributes: values that are taken, none said: any."""

    attributes: Mapping[str, frozenset[str]]
    open: bool = False  # any attribute
    deep: bool = False  # anything at all


def check(element: Element, grammar: str, path: str = "") -> None:
    """Raise Failure (67) for the first part of ELEMENT, at PATH, that is not in the grammar."""
    row = _rows(grammar).get(path)
    if row is None:
        raise Failure(
            failure.UNSUPPORTED, f"The element <{path}> is not supported for {_KINDS[grammar]}"
        )
    if row.deep:
        return
    for name, value in element.attrib.items():
        taken = row.attributes.get(name)
        if taken is None and not row.open:
            raise Failure(
                failure.UNSUPPORTED,
                f"{_named(path, name, value)} is not supported for {_KINDS[grammar]}",
            )
        if taken and value not in taken:
            words = ", ".join(sorted(taken))
            raise Failure(
                failure.UNSUPPORTED, f"{_named(path, name, value)} is not supported: {words}"
            )
    for each in element:
        check(each, grammar, f"{path}/{each.tag}" if path else each.tag)


def _named(path: str, name: str, value: str) -> str:
    return f"The attribute {name}='{value}' of <{path or 'domain'}>"


@cache
def _rows(grammar: str) -> Mapping[str, _Row]:
    found: dict[str, _Row] = {}
    for line in grammar.splitlines():
        path, *attributes = line.split(" ", 1) if line else [""]
        words = (attributes[0] if attributes else "").split()
        if path.endswith("/**"):
            found[path.removesuffix("/**")] = _Row({}, deep=True)
        elif line:
            pairs = [word.partition("=") for word in words if word != "*"]
            values = {name: frozenset(filter(None, text.split("|"))) for name, _, text in pairs}
            found[path] = _Row(values, open="*" in words)
    return found
