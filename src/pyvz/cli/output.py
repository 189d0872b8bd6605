"""JSON and tables in the form the originals print them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def prl_json(value: Any, depth: int = 0) -> str:
    """Return VALUE as the JSON of prlctl: tabs, and a list of objects with no blank before it.

    Source: PrlOutFormatter.cpp; an empty list is "[", an empty line, "]".
    """
    import json  # noqa: PLC0415  only for -j

    tabs = "\t" * (depth + 1)
    if isinstance(value, dict) and value:
        inner = ",\n".join(
            f"{tabs}{json.dumps(str(key), ensure_ascii=False)}: {prl_json(item, depth + 1)}"
            for key, item in value.items()
        )
        return "{\n" + inner + "\n" + "\t" * depth + "}"
    if isinstance(value, list) and depth == 0:
        inner = ",\n".join(tabs + prl_json(item, depth + 1) for item in value)
        return "[\n" + inner + "\n]"
    return json.dumps(value, ensure_ascii=False)


def first_addresses(addresses: Sequence[str]) -> list[str]:
    """Return addresses without masks, IPv4 first, then IPv6, then IPv6 link-local."""
    bare = [address.partition("/")[0] for address in addresses]
    return sorted(bare, key=lambda text: (":" in text, text.lower().startswith("fe80:")))


def on_off_list(features: Mapping[str, bool] | None) -> str:
    """Return features as prlctl prints them: "nfs:on bridge:off"."""
    if not features:
        return ""
    return " ".join(f"{name}:{'on' if on else 'off'}" for name, on in features.items())
