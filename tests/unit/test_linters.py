"""The linters as ordinary tests, so that one command checks everything."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

MODULE_LINES = 500
FUNCTION_LINES = 50

FOLDERS = ("src", "bench", "tests", "script")
PYTHON = sorted(path for name in FOLDERS for path in (REPO / name).rglob("*.py"))
OWN_CODE = [path for path in PYTHON if "tests" not in path.relative_to(REPO).parts]


def name_of(path: Path) -> str:
    """The path below the repository, for test ids."""
    return path.relative_to(REPO).as_posix()


def shell_scripts() -> list[Path]:
    """Every shell script of the repository, known by its first line or its name."""
    found = []
    for folder in ("script", ".ci", "bench", "tests", "templates", "completions"):
        for path in sorted((REPO / folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and is_shell(path):
                found.append(path)
    return found


def is_shell(path: Path) -> bool:
    """Whether a file is a program for sh or bash."""
    with path.open("rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and any(
        word in (b"sh", b"bash", b"/bin/sh", b"/bin/bash") for word in first[2:].split()
    )


def check(*argv: str | os.PathLike[str]) -> None:
    """Run a linter; its words are the test's message."""
    done = subprocess.run(
        argv,
        check=False,
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, "\n" + done.stdout[-8000:] + done.stderr[-4000:]


def test_ruff_finds_nothing() -> None:
    check(BIN / "ruff", "check", "--no-cache", ".")


def test_ruff_would_format_nothing() -> None:
    check(BIN / "ruff", "format", "--check", "--no-cache", ".")


def test_mypy_strict_finds_nothing() -> None:
    check(BIN / "mypy", "--no-error-summary", "--cache-dir=/dev/null")


def test_modules_are_short() -> None:
    sizes = {name_of(path): path.read_bytes().count(b"\n") for path in PYTHON}
    long = {name: lines for name, lines in sizes.items() if lines > MODULE_LINES}
    assert not long, f"split by noun: {long}"


def test_functions_are_short() -> None:
    long = [f"{name_of(path)}: {found}" for path in OWN_CODE for found in long_functions(path)]
    assert not long, "\n".join(long)


def long_functions(path: Path) -> Iterator[str]:
    """Lines from "def" to the end; a docstring is not counted, it may take the room it needs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            text = node.body[0]
            lines -= (text.end_lineno or text.lineno) - text.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", shell_scripts(), ids=name_of)
def test_shellcheck_finds_nothing(path: Path) -> None:
    assert shutil.which("shellcheck"), "shellcheck is not installed (script/bootstrap --dev)"
    check("shellcheck", path)


@pytest.mark.parametrize("path", sorted((REPO / "man").glob("*.[1-8]")), ids=name_of)
def test_man_pages_build_without_a_warning(path: Path) -> None:
    assert shutil.which("mandoc"), "mandoc is not installed (script/bootstrap --dev)"
    check("mandoc", "-T", "lint", "-W", "warning", path)


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{name_of(path)}: {target}"
        for path in (REPO / "README.md", *sorted(REPO.glob("docs/**/*.md")))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)
