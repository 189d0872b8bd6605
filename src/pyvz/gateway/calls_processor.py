"""Processors compared: whether the node can give one to a machine, and which all of several can.

What counts is what QEMU on this node can give, by KVM or by emulation; so the two calls about "the
host" and those about "the hypervisor" have the same answers.
"""

from __future__ import annotations

import os
from functools import reduce
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.errors import Unsupported
from pyvz.gateway import failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.operations import machineground
from pyvz.vm import processors
from pyvz.vm.processors import Processors, canonical

INCOMPATIBLE, IDENTICAL, SUPERSET = 0, 1, 2
FAIL: Final = 1  # flag of a comparison: an error when the node cannot give it
EXPAND: Final = 1  # flag of a baseline: every feature is named, also those of the model
_OFF: Final = frozenset({"disable", "forbid"})
_WHOLE: Final = frozenset({"host-passthrough", "host-model", "maximum"})


def connect_compare_cpu(call: Call, *, xml: str, flags: int) -> Values:
    """Whether the node can give that processor, and whether it has more."""
    known = _known(call)
    wanted = features_of(parsed(xml, "description"), known)
    missing = sorted(wanted - known.node)
    if missing and flags & FAIL:
        raise Failure(failure.CPU_INCOMPATIBLE, f"This node cannot give it: {', '.join(missing)}")
    if missing:
        return {"result": INCOMPATIBLE}
    return {"result": IDENTICAL if wanted == known.node else SUPERSET}


def connect_compare_hypervisor_cpu(
    call: Call, *, arch: str | None, virttype: str | None, xmlCPU: str, flags: int, **_: object
) -> Values:
    """The same."""
    _check(arch, virttype)
    return connect_compare_cpu(call, xml=xmlCPU, flags=flags)


def connect_baseline_cpu(call: Call, *, xmlCPUs: list[str], flags: int) -> Values:
    """The best processor that has only what all of these have."""
    if not xmlCPUs:
        raise Failure(failure.INVALID_ARGUMENT, "No processors are given")
    known = _known(call)
    every = [features_of(parsed(each, "description"), known) for each in xmlCPUs]
    common = reduce(frozenset.__and__, every)
    model = processors.nearest(known.models, common)
    if model is None:
        raise Failure(failure.UNSUPPORTED, "No model has only what all these processors have")
    top = Element("cpu", mode="custom", match="exact")
    SubElement(top, "model", fallback="forbid").text = model
    named = common if flags & EXPAND else common - known.models[model]
    for name in sorted(named):
        SubElement(top, "feature", policy="require", name=name)
    return {"cpu": text_of(top)}


def connect_baseline_hypervisor_cpu(
    call: Call, *, arch: str | None, virttype: str | None, xmlCPUs: list[str], flags: int,
    **_: object,
) -> Values:  # fmt: skip
    """The same, as far as the node can give it; without processors, what the node can give."""
    _check(arch, virttype)
    whole = "<cpu mode='host-passthrough'/>"
    return connect_baseline_cpu(call, xmlCPUs=[*xmlCPUs, whole], flags=flags)


def _known(call: Call) -> Processors:
    """Return what QEMU knows; raises Failure (3), with which clients go on, where there is none."""
    try:
        return processors.known(machineground.accelerator_of(call.office.node).name)
    except Unsupported as error:
        raise Failure(failure.NO_SUPPORT, error.message) from error


def _check(arch: str | None, virttype: str | None) -> None:
    if arch not in (None, os.uname().machine) or virttype not in (None, "vz", "parallels"):
        raise Failure(
            failure.INVALID_ARGUMENT, f"This node has no machines of {virttype or 'vz'} on {arch}"
        )


def features_of(top: Element, known: Processors) -> frozenset[str]:
    """Return what a <cpu> consists of, or the one in capabilities; raises Failure (27, 67)."""
    cpu: Any = top if top.tag == "cpu" else top.find(".//cpu")
    if cpu is None:
        raise Failure(failure.XML, f"<{top.tag}> has no <cpu>")
    arch = (cpu.findtext("arch") or os.uname().machine).strip()
    if arch != os.uname().machine:
        raise Failure(failure.UNSUPPORTED, f"This node has no processors of {arch}")
    found = set(_base(cpu, known))
    for each in cpu.iter("feature"):
        name = canonical(each.get("name") or "")
        if name not in known.features:
            raise Failure(failure.UNSUPPORTED, f"The feature '{name}' is not known")
        if (each.get("policy") or "require") in _OFF:
            found.discard(name)
        elif (each.get("policy") or "require") != "optional":
            found.add(name)
    return frozenset(found)


def _base(cpu: Element, known: Processors) -> frozenset[str]:
    model = (cpu.findtext("model") or "").strip()
    # That of our capabilities names neither: it is the node's.
    if not model and (cpu.get("mode") in _WHOLE or cpu.get("mode") is None):
        return known.node
    if not model:
        raise Failure(failure.XML, "<cpu> names no <model>")
    if model not in known.models:
        raise Failure(failure.UNSUPPORTED, f"The model of processor '{model}' is not known")
    return known.models[model]
