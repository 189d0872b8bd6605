"""What a node's administrator sets about traffic: shaping, its rates, and the network classes.

Everything is read before anything is written; then it is put in force for what runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pyvz.errors import NotFound
from pyvz.linux.file import write_atomic
from pyvz.model.conffile import ConfFile
from pyvz.model.grammar_list import Rate, Rates
from pyvz.network import shaping
from pyvz.network.classes import TrafficClass
from pyvz.operations import traffic
from pyvz.operations.node import Node
from pyvz.store.nodeconf import read_conf

_RATES = Rates()


class Change(NamedTuple):
    """What shall be different.  shaping: None leaves it.

    classes: ``CLASS:CIDR``; entries: ``DEV:CLASS:TOTALRATE:RATE``; bandwidths: ``DEV:KBITS``.  Each
    is a pair: what is added (and takes the place of one for the same), and what is taken away.
    """

    shaping: bool | None = None
    classes: tuple[Sequence[str], Sequence[str]] = ((), ())
    entries: tuple[Sequence[str], Sequence[str]] = ((), ())
    bandwidths: tuple[Sequence[str], Sequence[str]] = ((), ())


class Settings(NamedTuple):
    """What is set."""

    shaping: bool
    bandwidth: str
    totalrate: str
    rate: str
    classes: tuple[TrafficClass, ...]


def settings(node: Node) -> Settings:
    """Return what is set; raises ConfigError."""
    config = node.config()
    return Settings(
        config.traffic_shaping,
        config.bandwidth,
        config.totalrate,
        config.rate,
        traffic.network_classes(node),
    )


def change(node: Node, wanted: Change) -> tuple[str, ...]:
    """Write the settings and put them in force; return the names of what runs with them.

    Raises BadValue, NotFound, ConfigError: then nothing has changed.
    """
    conf = read_conf(node.paths.vz_conf)
    texts = _texts(conf, wanted)
    if any(wanted.classes):
        traffic.change_classes(node, *wanted.classes)
    for key, text in texts.items():
        conf.set(key, text)
    if texts:
        write_atomic(node.paths.vz_conf, conf.render().encode("utf-8", "surrogateescape"), 0o644)
    return traffic.restart(node)


def _texts(conf: ConfFile, wanted: Change) -> dict[str, str | None]:
    """Return {key of vz.conf: new text} of what differs."""
    made: dict[str, str | None] = {}
    if wanted.shaping is not None:
        made["TRAFFIC_SHAPING"] = "yes" if wanted.shaping else "no"
    add = [shaping.parse_entry(text) for text in wanted.entries[0]]
    gone = [shaping.parse_entry(text) for text in wanted.entries[1]]
    if add or gone:
        for index, key in enumerate(("TOTALRATE", "RATE")):
            new, old = [pair[index] for pair in add], [pair[index] for pair in gone]
            made[key] = _rates(_RATES.parse(conf.get(key) or ""), new, old)
    if any(wanted.bandwidths):
        made["BANDWIDTH"] = _bandwidth(conf.get("BANDWIDTH") or "", *wanted.bandwidths)
    return made


def _rates(have: Sequence[Rate], add: Sequence[Rate], gone: Sequence[Rate]) -> str:
    found = {(each.device, each.traffic_class): each for each in have}
    for each in gone:
        if found.pop((each.device, each.traffic_class), None) != each:
            raise NotFound(f"There is no entry {_RATES.format((each,))}")
    found |= {(each.device, each.traffic_class): each for each in add}
    return _RATES.format(tuple(found.values()))


def _bandwidth(text: str, add: Sequence[str], gone: Sequence[str]) -> str:
    words = {word.partition(":")[0]: word for word in re.findall(r"[^\s,]+", text)}
    for word in gone:
        device, _ = shaping.parse_bandwidth(word)
        if words.pop(device, None) != word:
            raise NotFound(f"There is no bandwidth entry {word}")
    words |= {shaping.parse_bandwidth(word)[0]: word for word in add}
    return " ".join(words.values())
