"""The layer rule, read from the imports themselves (docs/design/architecture.md).

errors < units < model < linux < store < image < container | vm | storage | network | template |
memory < backup < operations < gateway < daemon | cli.
Modules of one line import each other only inside their own package.  ``cli`` imports none of
the engine, at any time: a command line has 20 ms to start.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

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
each_module = pytest.mark.parametrize("path", CODE, ids=name_of)


@each_module
def test_a_module_imports_only_lower_layers(path: Path) -> None:
    own = own_layer(path)
    assert own in RANKS, f"{name_of(path)} is in no layer"
    wrong = []
    for item in imports(path):
        other = layer(item.module)
        if other is None or other == own:
            continue
        if RANKS.get(other, 99) >= RANKS[own]:
            wrong.append(f"line {item.line}: {own} must not import {item.module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in CODE if own_layer(p) == "cli"], ids=name_of)
def test_the_command_lines_import_none_of_the_engine(path: Path) -> None:
    wrong = []
    for item in imports(path):
        other = layer(item.module)
        if other is not None:
            allowed = other in CLI_MAY_IMPORT
        else:
            name = item.module.split(".")[0]
            allowed = (
                item.typing_only or name in CLI_STANDARD_LIBRARY or (item.late and name in CLI_LATE)
            )
        if not allowed:
            wrong.append(f"line {item.line}: {item.module}")
    assert not wrong, "\n".join(wrong)


@each_module
def test_programs_are_run_through_one_door(path: Path) -> None:
    if name_of(path) == "linux/run.py":
        return
    found = {item.module.split(".")[0] for item in imports(path)}
    assert "subprocess" not in found
    text = path.read_text()
    for call in ("os.system(", "os.popen(", "create_subprocess_"):
        assert call not in text, f"{name_of(path)} uses {call}"


@each_module
def test_syscalls_are_made_through_one_door(path: Path) -> None:
    # A library is not a system call, and needs a door of its own.
    doors = path.name.startswith("syscall") or path.name == "libnftables.py"
    if own_layer(path) == "linux" and doors:
        return
    assert "ctypes" not in {item.module.split(".")[0] for item in imports(path)}


@pytest.mark.parametrize(
    "path", [path for path in modules() if path.name == "__init__.py"], ids=name_of
)
def test_package_files_are_empty(path: Path) -> None:
    assert path.read_text() == ""


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in modules()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
