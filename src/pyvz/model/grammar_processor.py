"""The processor of a virtual machine: features that it has or has not, whatever its model says.

VM_CPU_FEATURES="require:avx2 disable:hle" in libvirt's words: force and optional turn a feature on
as far as the node can, require wants it there, disable turns it off.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pyvz.errors import BadValue

POLICIES: Final = ("force", "require", "optional", "disable")
_SIGNS: Final = {"+": "require", "-": "disable"}
_FEATURE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST: Final = 200


class Feature(NamedTuple):
    """One feature.  name: as QEMU has it (-cpu help)."""

    policy: str
    name: str

    @property
    def on(self) -> bool:
        """Whether it is turned on."""
        return self.policy != "disable"


class Features:
    """VM_CPU_FEATURES: each feature once."""

    def parse(self, text: str) -> tuple[Feature, ...]:
        """Return the features; BadValue names the word."""
        found = tuple(map(_feature, text.replace(",", " ").split()))
        if len({each.name for each in found}) < len(found):
            raise BadValue(f"'{text}' names a feature twice")
        if len(found) > _MOST:
            raise BadValue(f"A processor cannot be told more than {_MOST} features")
        return found

    def format(self, value: tuple[Feature, ...]) -> str:
        """Return the stored text."""
        return " ".join(f"{each.policy}:{each.name}" for each in value)


def _feature(word: str) -> Feature:
    policy, colon, name = word.partition(":")
    if not colon:
        policy, name = _SIGNS.get(word[:1], ""), word[1:]
    name = name.replace("_", "-")  # libvirt's word for some; QEMU takes both
    if policy not in POLICIES or not _FEATURE.fullmatch(name):
        raise BadValue(
            f"'{word}' is no feature of a processor: +NAME, -NAME, or POLICY:NAME with a policy of"
            f" {', '.join(POLICIES)}"
        )
    return Feature(policy, name)
