"""prlsrvctl tc, and the options of prlsrvctl set about traffic."""

from __future__ import annotations

import sys

from pyvz.cli.program import failed
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

SET_OPTIONS: tuple[OptionRow, ...] = (
    ("--vcmmd-policy", "POLICY", "change the policy of the memory manager (vcmmdctl policies)"),
    ("--shaping", "on|off", "shape the traffic of containers"),
    ("--add-network-class", "+CLASS:CIDR", "a network of a class (0 to 15) of traffic"),
    ("--del-network-class", "+CLASS:CIDR", "take it away"),
    ("--add-shaping-entry", "+DEV:CLASS:TOTALRATE:RATE", "rates in kbit/s: of all, of each"),
    ("--del-shaping-entry", "+DEV:CLASS:TOTALRATE:RATE", "take them away"),
    ("--add-bandwidth-entry", "+DEV:BANDWIDTH", "what a device can carry, in kbit/s"),
    ("--del-bandwidth-entry", "+DEV:BANDWIDTH", "take it away"),
)
_LISTS = {
    "network-class": "classes",
    "shaping-entry": "entries",
    "bandwidth-entry": "bandwidths",
}


def tc(args: Arguments, server: Server) -> int:
    """Put rates and classes in force again."""
    if args.words != ["restart"]:
        raise UsageError("Unrecognized action of tc", hint="prlsrvctl tc restart")
    try:
        server.change("Traffic.Restart")
    except VZError as error:
        raise failed("restart network shaping", error) from error
    sys.stdout.write("Network shaping has been successfully restarted\n")
    return 0


def set_(args: Arguments, server: Server) -> int:
    """Change the node."""
    args.no_more_words()
    wanted: dict[str, Any] = {
        f"{verb}_{name}": args.values(f"{verb}-{option}")
        for option, name in _LISTS.items()
        for verb in ("add", "del")
        if args.values(f"{verb}-{option}")
    }
    if args.has("shaping"):
        word = args.value("shaping")
        if word not in {"on", "off"}:
            raise UsageError(f"--shaping: '{word}' is neither on nor off")
        wanted["shaping"] = word == "on"
    policy = args.value("vcmmd-policy")
    if not wanted and policy is None:
        raise UsageError("Nothing to set", hint="prlsrvctl --help lists the options.")
    try:
        if policy is not None:
            server.change("Memory.SetPolicy", policy=policy)
        if wanted:
            server.change("Traffic.Set", **wanted)
    except VZError as error:
        raise failed("configure the Server", error) from error
    sys.stdout.write("The Server has been successfully configured.\n")
    return 0
