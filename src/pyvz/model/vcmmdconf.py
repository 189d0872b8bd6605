"""vcmmd.conf: how the memory manager of the node is set up.

The file is JSON, as the original's (reference: vcmmd, config.py); keys that are not known here
stay when it is rewritten.  A value that makes no sense counts as not given, with a problem noted:
a node must come up with a damaged file too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyvz.units import MIB

FALLBACK = "noop"  # what counts when the file names no policy
_SHARES = {  # share of all memory, at least, at most: what the node keeps for itself
    "HostMem": (0.04, 320 * MIB, 512 * MIB),
    "SysMem": (0.04, 320 * MIB, 512 * MIB),
    "UserMem": (0.02, 32 * MIB, 128 * MIB),
}
# Both generations of the original and what its free tree calls them.
ALIASES = {"NoOpPolicy": "noop", "noop": "noop"}


class Share(NamedTuple):
    """A part of all memory, at least and at most so many bytes."""

    share: float
    least: int
    most: int

    def of(self, total: int) -> int:
        """Return the bytes of TOTAL."""
        return min(max(int(total * self.share), self.least), self.most)


class VcmmdConf(NamedTuple):
    """What the file says.  data: all of it.  problems: what was not understood, for the log."""

    data: Mapping[str, Any]
    problems: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> VcmmdConf:
        """Return what TEXT says; never fails."""
        try:
            data = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            return cls({}, (f"it is not JSON: {error}",))
        if not isinstance(data, dict):
            return cls({}, ("it is not a JSON object",))
        conf = cls(data)
        return conf._replace(problems=tuple(conf._find_problems()))

    @property
    def policy(self) -> str:
        """The name of the policy."""
        name = self._get("LoadManager", "Policy")
        if not isinstance(name, str) or not name:
            return FALLBACK
        return ALIASES.get(name, name)

    @property
    def log_level(self) -> str:
        """The level of the memory manager's log messages."""
        level = self._get("Logging", "Level")
        return level if isinstance(level, str) else "info"

    def reserved(self, total: int) -> int:
        """Return what of TOTAL the node keeps for itself."""
        return sum(self.share(name).of(total) for name in _SHARES)

    def share(self, name: str) -> Share:
        """Return the reservation HostMem, SysMem or UserMem."""
        share, least, most = _SHARES[name]
        return Share(
            _number(self._get("Host", name, "Share"), share, most=1),
            int(_number(self._get("Host", name, "Min"), least)),
            int(_number(self._get("Host", name, "Max"), most)),
        )

    def with_policy(self, name: str) -> VcmmdConf:
        """Return the same with another policy."""
        data = copy.deepcopy(dict(self.data))
        section = data.get("LoadManager")
        data["LoadManager"] = {**(section if isinstance(section, dict) else {}), "Policy": name}
        return VcmmdConf(data)

    def full(self) -> dict[str, Any]:
        """Return everything, with what counts where the file says nothing."""
        data = copy.deepcopy(dict(self.data))
        for section, value in (
            ("Logging", {"Level": self.log_level}),
            ("LoadManager", {"Policy": self.policy}),
        ):
            found = data.get(section)
            data[section] = {**value, **(found if isinstance(found, dict) else {})}
        data["Host"] = {
            name: {"Share": share.share, "Min": share.least, "Max": share.most}
            for name, share in ((name, self.share(name)) for name in _SHARES)
        }
        return data

    def render(self) -> str:
        """Return the text of the file."""
        return json.dumps(self.data, indent=8) + "\n"

    def _get(self, *keys: str) -> object:
        found: Any = self.data
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def _find_problems(self) -> list[str]:
        problems = []
        name = self._get("LoadManager", "Policy")
        if name is not None and not isinstance(name, str):
            problems.append("LoadManager.Policy is not a text")
        for share in _SHARES:
            for key, most in (("Share", 1.0), ("Min", float("inf")), ("Max", float("inf"))):
                value = self._get("Host", share, key)
                if value is not None and _number(value, -1, most=most) < 0:
                    problems.append(f"Host.{share}.{key}: {value!r} is not a number in range")
        return problems


def _number(value: object, default: float, *, most: float = float("inf")) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        return default
    return value
