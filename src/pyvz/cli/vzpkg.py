"""vzpkg: EZ templates, their caches, and packages in containers.

A command is a row `(words, arguments, summary, function)`; some have two words ("create cache").
Options are common to all commands, as in the original; one that has no meaning for a command is
ignored there.
"""

from __future__ import annotations

import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import NotFound, TemplateNotFound, Unsupported, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

    Row = tuple[str, str, str, Callable[[Arguments, Server], int]]

# vztt include/vztt_error.h
NOT_UP_TO_DATE = 2  # `status`: vzpkg(8)

OPTIONS: tuple[OptionRow, ...] = (
    ("-p,--packages", "", "objects are packages, not application templates"),
    ("-O,--os", "", "OS templates only"),
    ("-A,--app", "", "application templates only"),
    ("-F,--for-os", "OS|CT", "the OS template, or a container of it, that is meant"),
    ("-c,--cached", "", "OS templates with a cache only"),
    ("-S,--with-summary", "", "list: with summaries"),
    ("-i,--pkgid", "", "accepted: names are unique"),
    ("--available", "", "list: what could be installed on this node"),
    ("-w,--with-depends", "", "remove: also what needs it"),
    ("-f,--force", "", "do it although it is there already"),
    ("-q,--quiet", "", "say less"),
    ("-d,--debug", "LEVEL", "accepted, no effect: the log has everything"),
    ("-C,--cache", "", "accepted, no effect: package lists are kept for a day"),
    ("-r,--remote", "", "accepted, no effect"),
    ("-n,--check-only", "", "update: only show what would change"),
    ("-k,--clean-packages", "", "clean: packages too (always done)"),
    ("-t,--template", "", "update: all application templates"),
    ("-a,--clean-all", "", "clean: everything (always done)"),
    ("--update-cache", "", "accepted: a cache is always built anew"),
    ("--timeout", "SECONDS", "wait so long for another operation on the container to end"),
    ("--help", "", "show this"),
)


def main(argv: Sequence[str]) -> int:
    """Run vzpkg with the words after the program's name; return the exit code."""
    return run("vzpkg", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Find the command of ARGV and run it."""
    if argv in (["help"], ["--help"], ["-h"]):
        sys.stdout.write(usage())
        return 0
    if argv == ["--version"]:
        sys.stdout.write(f"vzpkg version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv, abbreviations=True)
    if args.has("help"):
        sys.stdout.write(usage())
        return 0
    command = find(args)
    timeout = args.number("timeout", 0) if args.has("timeout") else None
    with Server("vzpkg", timeout=timeout, quiet=args.has("quiet")) as server:
        return command(args, server)


def find(args: Arguments) -> Callable[[Arguments, Server], int]:
    """Return the command's function, and take its words off the arguments; raise UsageError."""
    for words, why in LATER.items():
        if args.words[: len(words.split())] == words.split():
            raise Unsupported(f"vzpkg {words} is not supported", hint=why)
    # The longer command first: "install template" before "install".
    for words, _, _, function in sorted(COMMANDS, key=lambda row: -len(row[0].split())):
        wanted = words.split()
        if args.words[: len(wanted)] == wanted:
            del args.words[: len(wanted)]
            return function
    if not args.words:
        raise UsageError("No command is specified", hint="vzpkg help lists the commands.")
    raise UsageError(f"Unknown command: {args.words[0]}", hint="vzpkg help lists the commands.")


# Lists and facts


def list_(args: Arguments, server: Server) -> int:
    """List templates of the node, or what is in a container."""
    containers, templates = _sorted_out(args.words, server)
    kind = "os" if args.has("os") else "app" if args.has("app") else None
    for ref in containers:
        packages = args.has("packages")
        rows = server.ask("Template.ListContainer", ref=ref, packages=packages)["rows"]
        if packages:
            _print_packages(rows, summary=args.has("with-summary"))
        else:
            _print_templates([row for row in rows if _is_kind(row, kind)], args)
    if templates or not containers:
        rows = server.ask("Template.List", names=templates, kind=kind, cached=args.has("cached"))
        _print_templates(rows["rows"], args)
    return 0


def _sorted_out(words: Sequence[str], server: Server) -> tuple[list[str], list[str]]:
    """Return which words are containers and which must be OS templates."""
    containers: list[str] = []
    templates: list[str] = []
    for word in words:
        (containers if _is_container(word, server) else templates).append(word)
    return containers, templates


def _is_container(word: str, server: Server) -> bool:
    return bool(server.ask("Environment.Status", ref=word)["exists"])


def _is_kind(row: dict[str, Any], kind: str | None) -> bool:
    return kind is None or (kind == "app") == bool(row["app"])


def _print_templates(rows: list[dict[str, Any]], args: Arguments) -> None:
    for row in rows:
        name = f"{row['os']:<34}" + (f" {row['app']:<18}" if row["app"] else "")
        if args.has("with-summary"):
            text = f"{name} :{row['summary']}"
        else:
            text = f"{name} {row['timestamp']}"
        sys.stdout.write(text.rstrip() + "\n")


def _print_packages(rows: list[dict[str, Any]], *, summary: bool) -> None:
    for row in rows:
        text = f"{row['name']:<31} {row['arch']:<8} {row['version']:<24}"
        sys.stdout.write((f"{text} :{row['summary']}" if summary else text).rstrip() + "\n")


def info(args: Arguments, server: Server) -> int:
    """Print facts about a template."""
    if not args.words:
        raise UsageError("A template is not specified")
    name, *parameters = args.words
    for_os = args.value("for-os")
    if for_os is None and parameters and _is_container(name, server):
        # info CT APP [PARAMETER...] is info -F CT APP [PARAMETER...]
        known = server.ask("Template.Info", name=name)["facts"]
        if parameters[0] not in known:
            for_os, name, parameters = name, parameters[0], parameters[1:]
    facts = server.ask("Template.Info", name=name, parameters=parameters, for_os=for_os)["facts"]
    for key, value in facts.items():
        lines = value if isinstance(value, list) else str(value).splitlines()
        if len(parameters) == 1:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            continue
        sys.stdout.write(f"{key + ':':<22} {lines[0] if lines else ''}".rstrip() + "\n")
        sys.stdout.write("".join(f"{'':<22} {line}\n" for line in lines[1:]))
    return 0


def status(args: Arguments, server: Server) -> int:
    """Tell whether a container or a cache is up to date."""
    name = args.word("A container or OS template")
    updates = server.run("Template.Status", name=name)["updates"]
    _print_updates(updates)
    return NOT_UP_TO_DATE if updates else 0


def _print_updates(updates: list[dict[str, Any]]) -> None:
    for row in updates:
        sys.stdout.write(f"{row['name']:<31} {row['installed']:<24} {row['available']}\n")


# Caches


def create_cache(args: Arguments, server: Server) -> int:
    """Build caches."""
    return _caches("CreateCache", "created", args, server, force=args.has("force"))


def update_cache(args: Arguments, server: Server) -> int:
    """Build caches anew where newer packages are there."""
    return _caches("UpdateCache", "updated", args, server, force=args.has("force"))


def remove_cache(args: Arguments, server: Server) -> int:
    """Remove caches."""
    return _caches("RemoveCache", "removed", args, server)


def _caches(method: str, done: str, args: Arguments, server: Server, **options: Any) -> int:
    caches = server.run(f"Template.{method}", names=args.words, **options)["caches"]
    if not args.has("quiet"):
        for name in caches:
            sys.stdout.write(f"The cache of {name} was {done}\n")
        if not caches:
            sys.stdout.write("Nothing to do\n")
    return 0


def clean(args: Arguments, server: Server) -> int:
    """Drop package lists and packages kept on the node."""
    server.run("Template.Clean", names=args.words)
    return 0


# Containers


def install(args: Arguments, server: Server) -> int:
    """Install application templates or packages."""
    ref, names = _container(args, objects=True)
    return _changed(
        server.run("Template.Install", ref=ref, names=names, packages=args.has("packages")), args
    )


def update(args: Arguments, server: Server) -> int:
    """Update a container."""
    ref, names = _container(args)
    if args.has("check-only"):
        _print_updates(server.run("Template.Status", name=ref)["updates"])
        return 0
    return _changed(
        server.run("Template.Update", ref=ref, names=names, packages=args.has("packages")), args
    )


def remove(args: Arguments, server: Server) -> int:
    """Remove application templates or packages."""
    ref, names = _container(args, objects=True)
    options = {"packages": args.has("packages"), "with_depends": args.has("with-depends")}
    return _changed(server.run("Template.Remove", ref=ref, names=names, **options), args)


def local_install(args: Arguments, server: Server) -> int:
    """Install package files."""
    import os  # noqa: PLC0415  nobody else here needs it

    ref, names = _container(args, objects=True)
    files = [os.path.abspath(name) for name in names]
    return _changed(server.run("Template.LocalInstall", ref=ref, files=files), args)


def _container(args: Arguments, *, objects: bool = False) -> tuple[str, list[str]]:
    if not args.words:
        raise UsageError("A container is not specified")
    ref, *names = args.words
    if objects and not names:
        raise UsageError("Nothing is specified that should be installed or removed")
    return ref, names


def _changed(reply: dict[str, Any], args: Arguments) -> int:
    if args.has("quiet"):
        return 0
    for title, key in (("Installed", "installed"), ("Removed", "removed")):
        if reply[key]:
            sys.stdout.write(f"{title}:\n")
            for row in reply[key]:
                sys.stdout.write(f" {row['name']:<30} {row['arch']:<8} {row['version']}\n")
    if not reply["installed"] and not reply["removed"]:
        sys.stdout.write("Nothing to do\n")
    return 0


# Templates


def install_template(args: Arguments, server: Server) -> int:
    """Copy folders of metadata into the template area."""
    import os  # noqa: PLC0415

    if not args.words:
        raise UsageError("A folder is not specified")
    for word in args.words:
        folder = os.path.abspath(word)
        if not os.path.isdir(folder):
            raise NotFound(
                f"there is no folder {word}",
                hint="Give a folder <dist>/<version>/<arch> that holds config/os/default.",
            )
        name = server.run("Template.InstallTemplate", folder=folder, force=args.has("force"))
        sys.stdout.write(f"{name['name']} was installed\n")
    return 0


def remove_template(args: Arguments, server: Server) -> int:
    """Remove templates."""
    if not args.words:
        raise TemplateNotFound("A template is not specified")
    for name in args.words:
        server.run("Template.RemoveTemplate", name=name, for_os=args.value("for-os"))
    return 0


COMMANDS: tuple[Row, ...] = (
    ("list", "[CT...|OS...]", "list templates, or what is in containers", list_),
    ("info", "OS|CT|-F OS APP [PARAMETER...]", "show facts about a template", info),
    ("create cache", "[OS...]", "build caches of OS templates", create_cache),
    ("update cache", "[OS...]", "build them anew where packages are newer", update_cache),
    ("remove cache", "[OS...]", "remove caches", remove_cache),
    ("install", "CT OBJECT...", "install application templates or packages", install),
    ("update", "CT [OBJECT...]", "update packages", update),
    ("remove", "CT OBJECT...", "remove application templates or packages", remove),
    ("localinstall", "CT FILE...", "install package files of the node", local_install),
    ("localupdate", "CT FILE...", "the same", local_install),
    ("status", "OS|CT", "show what could be newer (exit code 2 then)", status),
    ("clean", "[OS...]", "drop package lists and packages kept on the node", clean),
    ("install template", "FOLDER...", "copy metadata into the template area", install_template),
    ("remove template", "[-F OS] NAME...", "remove metadata", remove_template),
)

# Commands of the original that answer clearly and do nothing.
LATER = {
    "create appcache": "Application caches are not built; install applications into a container.",
    "update appcache": "Application caches are not built; install applications into a container.",
    "remove appcache": "Application caches are not built; install applications into a container.",
    "list appcache": "Application caches are not built; install applications into a container.",
    "create image": "Make a container and use its disk.",
    "update metadata": "Package lists are fetched when they are needed.",
    "update template": "Install it again with --force.",
    "upgrade area": "There is no old template area.",
    "upgrade": "Upgrade the distribution inside the container by its own means.",
    "fetch": "Packages are fetched when they are needed.",
    "link": "Containers share no files of a template area.",
}


def usage() -> str:
    """Return the usage text."""
    lines = ["Usage: vzpkg COMMAND [OPTIONS] [ARGUMENTS]", "Commands:"]
    lines += [f"  {words + ' ' + rest:<46} {text}" for words, rest, text, _ in COMMANDS]
    lines.append("Options:")
    for names, metavar, text in OPTIONS:
        left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
        lines.append(f"  {left:<30} {text}")
    return "\n".join(lines) + "\n"
