"""The usage texts, printed from the verb and option tables."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvz.cli.arguments import OptionRow


def option_words(row: OptionRow) -> str:
    """Return a row as it is shown in a synopsis: "[-o,--output FIELD]"."""
    names, metavar, _ = row
    repeat = "..." if metavar.startswith("+") else ""
    value = " " + metavar.lstrip("+") if metavar else ""
    return f"[{names}{value}]{repeat}"


def wrapped(words: Iterable[str], first: str, indent: int, width: int = 90) -> str:
    """Return FIRST and the words, folded; continuation lines are indented."""
    lines = [first]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append(" " * indent + word)
        else:
            lines[-1] += " " + word
    return "\n".join(lines) + "\n"


def verb_lines(name: str, words: str, rows: Sequence[OptionRow]) -> str:
    """Return the synopsis of one verb."""
    first = f"  {name}" + (f" {words}" if words else "")
    return wrapped((option_words(row) for row in rows), first, 8)


def prlctl_usage() -> str:
    """Return the usage text of prlctl."""
    from pyvz.cli import prlctl  # noqa: PLC0415

    text = (
        "Utility to manage containers and virtual machines.\n"
        "Usage: prlctl ACTION <ID | NAME> [OPTIONS] [-l user[[:passwd]@server[:port]]\n"
        "Supported actions are:\n"
    )
    for row in prlctl.VERBS:
        names, words, _, _ = row
        rows = prlctl.load(row).OPTIONS.get(names.split(",")[0], ())
        text += verb_lines(names.replace(",", " | "), words, rows)
    return text + wrapped((option_words(row) for row in prlctl.GLOBAL), "Global options:", 8)


def prlsrvctl_usage() -> str:
    """Return the usage text of prlsrvctl."""
    from pyvz.cli import prlsrvctl  # noqa: PLC0415

    text = (
        "Utility to manage the node.\n"
        "Usage: prlsrvctl ACTION [OPTIONS] [-l user[[:passwd]@server[:port]]\n"
        "Supported actions are:\n"
    )
    for names, words, _ in prlsrvctl.VERBS:
        rows = prlsrvctl.options(names.split(",")[0])
        text += verb_lines(names.replace(",", " | "), words, rows)
    return text + wrapped((option_words(row) for row in prlsrvctl.GLOBAL), "Global options:", 8)


def vzctl_usage() -> str:
    """Return the usage text of vzctl."""
    from pyvz.cli import vzctl  # noqa: PLC0415

    text = "Usage: vzctl [GLOBAL OPTIONS] COMMAND CTID|NAME [OPTIONS]\nCommands:\n"
    for row in vzctl.VERBS:
        names, words, _, _ = row
        rows = vzctl.load(row).OPTIONS.get(names.split(",")[0], ())
        text += verb_lines(names.replace(",", " | "), words, rows)
    return text + wrapped((option_words(row) for row in vzctl.GLOBAL), "Global options:", 8)


def vzlist_usage() -> str:
    """Return the usage text of vzlist."""
    from pyvz.cli import vzlist  # noqa: PLC0415

    lines = [
        "Usage: vzlist [-a|-S] [-n] [-H] [-o field[,field...]] [-s [-]field]",
        "              [-h pattern] [-N pattern] [-d pattern] [-i ifname] [CTID...|-1]",
        "       vzlist -L",
        "",
    ]
    for names, metavar, help_text in vzlist.OPTIONS:
        left = names.replace(",", ", ") + (f" {metavar.lstrip('+')}" if metavar else "")
        lines.append(f"   {left:<30} {help_text}")
    return "\n".join(lines) + "\n"


def vznetstat_usage() -> str:
    """Return the usage text of vznetstat."""
    from pyvz.cli import vznetstat  # noqa: PLC0415

    lines = ["Usage: vznetstat [-4|-6] [-v CTID|NAME] [-c CLASS] [-a] [-r]", ""]
    for names, metavar, help_text in vznetstat.OPTIONS:
        left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
        lines.append(f"   {left:<30} {help_text}")
    return "\n".join(lines) + "\n"


def plain_usage(synopsis: str, rows: Iterable[OptionRow]) -> str:
    """Return the usage text of a tool without verbs."""
    lines = [f"Usage: {synopsis}", ""]
    for names, metavar, help_text in rows:
        left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
        lines.append(f"   {left:<30} {help_text}")
    return "\n".join(lines) + "\n"


def vcmmdctl_usage() -> str:
    """Return the usage text of vcmmdctl."""
    from pyvz.cli import vcmmdctl  # noqa: PLC0415

    lines = ["Usage: vcmmdctl <command> <args>...", ""]
    for verb, words, summary in vcmmdctl.VERBS:
        lines.append(f"   {verb + (' ' + words if words else ''):<30} {summary}")
        for names, metavar, help_text in vcmmdctl.OPTIONS.get(verb, ()):
            left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
            lines.append(f"       {left:<26} {help_text}")
    return "\n".join(lines) + "\n"


def vzmigrate_usage() -> str:
    """Return the usage text of vzmigrate."""
    from pyvz.cli import vzmigrate  # noqa: PLC0415

    lines = ["Usage: vzmigrate [OPTIONS] [USER@]NODE[:PORT] CT[:NEWID[:PRIVATE[:ROOT]]]...", ""]
    for names, metavar, help_text in vzmigrate.OPTIONS:
        left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
        lines.append(f"   {left:<30} {help_text}")
    return "\n".join(lines) + "\n"
