"""The tables of the command lines: exit codes, fields, options, generated files, start-up."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pyvz import errors
from pyvz.cli import exitcodes, options, prlctl, prlctl_list, vzctl, vzlist_fields
from pyvz.cli.arguments import Arguments, key_of, option_names, parse
from pyvz.cli.fields import FIELDS
from pyvz.errors import UsageError
from pyvz.model.params import by_option

REPO = Path(__file__).resolve().parents[2]
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
HEAVY = (
    *("asyncio", "subprocess", "logging", "xml", "ssl", "importlib.metadata", "dataclasses"),
    *("argparse", "typing", "pathlib", "threading", "tqdm"),
)


@pytest.mark.parametrize("dialect", exitcodes.DIALECTS)
@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_an_exit_code(dialect: str, kind: type[errors.VZError]) -> None:
    code = exitcodes.exit_code(dialect, kind("what happened"))
    assert 1 <= code <= 255


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.EnvironmentNotFound, 14),
        (errors.AlreadyRunning, 32),
        (errors.NotRunning, 31),
        (errors.Locked, 9),
        (errors.BadValue, 21),
        (errors.UsageError, 20),
        (errors.NoSpace, 46),
        (errors.PrivateExists, 44),
        (errors.Busy, 231),
        (errors.CacheMissing, 221),
        (errors.VZError, 3),
    ],
)
def test_codes_of_vzctl(kind: type[errors.VZError], code: int) -> None:
    assert exitcodes.exit_code("vzctl", kind("x")) == code


def test_columns_ask_for_known_fields() -> None:
    for column in prlctl_list.COLUMNS:
        assert set(column[3]) <= FIELDS, column[0]
    for name, field in vzlist_fields.FIELDS.items():
        assert set(field[2]) <= FIELDS, name


@pytest.mark.parametrize(
    ("dialect", "rows"), [("prlctl", options.PRLCTL), ("vzctl", options.VZCTL)]
)
def test_set_options_are_known_to_the_server(
    dialect: str, rows: tuple[tuple[str, str, str], ...]
) -> None:
    for row in rows:
        key = key_of(row)
        for scope in ("", "netif", "disk"):
            try:
                by_option(dialect, key, scope)
            except UsageError:
                continue
            break
        else:
            pytest.fail(f"the server does not know --{key} of {dialect}")


@pytest.mark.parametrize("tool", [prlctl, vzctl])
def test_verbs_have_handlers_and_unambiguous_options(tool: object) -> None:
    verbs: tuple[tuple[str, str, str, str], ...] = tool.VERBS  # type: ignore[attr-defined]
    for row in verbs:
        module = tool.load(row)  # type: ignore[attr-defined]
        verb = row[0].split(",")[0]
        assert callable(getattr(module, verb.replace("-", "_") + "_"))
        names = [name for option in module.OPTIONS.get(verb, ()) for name in option_names(option)]
        assert len(names) == len(set(names)), f"{verb}: an option is there twice: {sorted(names)}"


def test_generated_files_are_fresh() -> None:
    generate = runpy.run_path(os.fspath(REPO / "script/generate"))
    stale = [
        path.name
        for path, text in generate["files"]().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run script/generate: {stale}"


@pytest.mark.parametrize(
    ("program", "argv"),
    [
        ("prlctl", ["list", "-a"]),
        ("prlctl", ["start", "ct1"]),
        ("prlctl", ["set", "ct1", "--cpus", "2"]),
        ("prlctl", ["exec", "ct1", "true"]),
        ("vzctl", ["start", "101"]),
        ("vzlist", ["-a"]),
    ],
)
def test_start_up_imports_little(program: str, argv: list[str], tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {os.fspath(REPO / 'src')!r})\n"
        "import os, json; from pyvz.cli import client; from pyvz import errors\n"
        "client.connect.__kwdefaults__['start'] = False\n"
        f"from pyvz.cli.{program} import main\n"
        f"code = main({argv!r})\n"
        f"json.dump([code, [m for m in {HEAVY!r} if m in sys.modules]], sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script],
        env={"PYVZ_ROOT": os.fspath(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert code != 0  # nobody answers


ROWS = (
    ("-a,--all", "", ""),
    ("-o,--output,--columns", "FIELD", ""),
    ("--ha-enable", "yes|no", ""),
    ("-v", "LEVEL", ""),
)


def test_parse_options_in_every_form() -> None:
    args = parse(ROWS, ["-ao", "x", "one", "--columns=y", "--ha_enable", "no", "--", "-a"])
    assert args.options == [("all", None), ("output", "x"), ("output", "y"), ("ha-enable", "no")]
    assert args.words == ["one", "-a"]
    assert args.value("output") == "y"
    assert args.values("output") == ["x", "y"]


@pytest.mark.parametrize(
    "argv", [["--none"], ["-z"], ["-o"], ["--output"], ["--all=1"], ["--out", "x"]]
)
def test_parse_refuses(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(ROWS, argv)


def test_parse_abbreviations() -> None:
    assert parse(ROWS, ["--out", "x"], abbreviations=True).value("output") == "x"
    with pytest.raises(UsageError, match="ambiguous"):
        parse((*ROWS, ("--outer", "", "")), ["--out", "x"], abbreviations=True)


def test_words_end_options() -> None:
    args = parse(ROWS, ["-a", "ls", "-o"], words_end_options=True)
    assert (args.options, args.words) == ([("all", None)], ["ls", "-o"])


def test_number() -> None:
    args = Arguments()
    args.options = [("timeout", "5x")]
    with pytest.raises(UsageError, match="5x"):
        args.number("timeout", 0)


@pytest.mark.parametrize(
    ("login", "fine"),
    [
        ("localhost", True),
        ("root@localhost", True),
        ("root:secret@localhost:64000", True),
        ("[::1]:64000", True),
        ("127.0.0.1", True),
        ("node2.example.com", False),
        ("root@10.0.0.1", False),
    ],
)
def test_login_is_local_only(login: str, fine: bool) -> None:
    args = Arguments()
    args.options = [("login", login)]
    if fine:
        prlctl.check_login(args)
        return
    with pytest.raises(errors.DaemonUnreachable, match="local node"):
        prlctl.check_login(args)


def test_man_pages_and_completions_are_well_formed() -> None:
    for page in sorted((REPO / "man").glob("*.[58]")):
        text = page.read_text(encoding="utf-8")
        assert text.startswith('.\\"')
        assert ".SH NAME" in text
