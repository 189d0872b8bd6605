"""The layer rule, read from the imports themselves (docs/design/architecture.md).

errors < units < model < linux < store < image < container | vm | storage | network | template |
memory < backup < operations < gateway < daemon | cli.
Modules of one line import each other only inside their own package.  ``cli`` imports none of
the engine, at any time: a command line has 20 ms to start.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import NamedTuple

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGE = SRC / "pyvz"

RANKS = {
    "errors": 0,
    "units": 1,
    "version": 0,
    "model": 2,
    "linux": 3,
    "store": 4,
    "image": 5,
    "container": 6,
    "vm": 6,
    "storage": 6,
    "network": 6,
    "template": 6,
    "memory": 6,
    "backup": 7,
    "migration": 7,
    "operations": 8,
    "gateway": 9,
    "daemon": 10,
    "cli": 10,
}

CLI_MAY_IMPORT = {"errors", "units", "version", "cli"}

# What a command line may load besides its own modules; each costs a millisecond or less.
CLI_STANDARD_LIBRARY = {
    "__future__",
    "_json",
    "_signal",
    "_socket",
    "array",
    "collections",
    "errno",
    "fcntl",
    "getpass",
    "json",
    "os",
    "pty",
    "pwd",
    "select",
    "signal",
    "socket",
    "stat",
    "struct",
    "sys",
    "termios",
    "time",
    "tty",
    "typing",
}

# What they may load inside a function, where a person waits or something broke anyway.
CLI_LATE = {"binascii", "fnmatch", "tqdm", "traceback"}


class Import(NamedTuple):
    """One imported module; whether only a type checker sees it; whether inside a function."""

    module: str
    line: int
    typing_only: bool
    late: bool


@functools.cache
def imports(path: Path) -> list[Import]:
    """Every import statement in a file, also those inside functions."""
    found: list[Import] = []

    def visit(node: ast.AST, *, typing_only: bool, late: bool) -> None:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = from_import(path, node)
        found.extend(Import(name, getattr(node, "lineno", 0), typing_only, late) for name in names)
        typing_only |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        late |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only=typing_only, late=late)

    visit(ast.parse(path.read_text(), filename=str(path)), typing_only=False, late=False)
    return found


def from_import(path: Path, node: ast.ImportFrom) -> list[str]:
    """``from a import b``: as "a.b" where a is a package of ours, so that "from pyvz import x"
    and a relative import are seen for what they are."""
    base = node.module or ""
    if node.level:
        package = list(path.relative_to(SRC).with_suffix("").parts)[: -node.level]
        base = ".".join([*package, *([base] if base else [])])
    if base.split(".")[0] != "pyvz":
        return [base]
    return [f"{base}.{alias.name}" for alias in node.names]


def layer(dotted: str) -> str | None:
    """The layer that a dotted name belongs to; None for what is not ours."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "pyvz" and len(parts) > 1 else None


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The path below src/pyvz, for messages and test ids."""
    return path.relative_to(PACKAGE).as_posix()


def own_layer(path: Path) -> str:
    """The layer that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


CODE = [path for path in modules() if path.name != "__init__.py"]


def test_a_module_imports_only_lower_layers() -> None:
    nowhere = [name_of(path) for path in CODE if own_layer(path) not in RANKS]
    assert not nowhere, f"in no layer: {nowhere}"
    wrong = []
    for path in CODE:
        own = own_layer(path)
        for item in imports(path):
            other = layer(item.module)
            if other is None or other == own:
                continue
            if RANKS.get(other, 99) >= RANKS[own]:
                wrong.append(f"{name_of(path)}:{item.line}: {own} must not import {item.module}")
    assert not wrong, "\n".join(wrong)


def test_the_command_lines_import_none_of_the_engine() -> None:
    wrong = [
        f"{name_of(path)}:{item.line}: {item.module}"
        for path in CODE
        if own_layer(path) == "cli"
        for item in imports(path)
        if not cli_may_import(item)
    ]
    assert not wrong, "\n".join(wrong)


def cli_may_import(item: Import) -> bool:
    """Whether a command line may: what keeps its start short."""
    other = layer(item.module)
    if other is not None:
        return other in CLI_MAY_IMPORT
    name = item.module.split(".")[0]
    return item.typing_only or name in CLI_STANDARD_LIBRARY or (item.late and name in CLI_LATE)


def test_programs_are_run_through_one_door() -> None:
    wrong = []
    for path in CODE:
        if name_of(path) == "linux/run.py":
            continue
        text = path.read_text()
        uses = [call for call in ("os.system(", "os.popen(", "create_subprocess_") if call in text]
        if "subprocess" in top_names(path):
            uses.append("subprocess")
        wrong += [f"{name_of(path)} uses {call}" for call in uses]
    assert not wrong, "\n".join(wrong)


def test_syscalls_are_made_through_one_door() -> None:
    # A library is not a system call, and needs a door of its own.
    wrong = [
        name_of(path)
        for path in CODE
        if "ctypes" in top_names(path)
        and not (
            own_layer(path) == "linux"
            and (path.name.startswith("syscall") or path.name == "libnftables.py")
        )
    ]
    assert not wrong, f"use ctypes: {wrong}"


def top_names(path: Path) -> set[str]:
    """The packages that a file imports from."""
    return {item.module.split(".")[0] for item in imports(path)}


def test_package_files_are_empty() -> None:
    filled = [
        name_of(path) for path in modules() if path.name == "__init__.py" and path.read_text()
    ]
    assert not filled


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in modules()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
