"""Lossless reading and writing of NAME="value" files."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import BadValue
from pyvz.model.conffile import ConfFile

SAMPLE = """\
# A container
VERSION="2"
  ONBOOT=yes   # with the node

CPUUNITS='1000'
NAME="first"
FOREIGN_KEY="keep me"
this is garbage
export HTTP_PROXY=proxy:3128
NAME="second"
"""

_KEYS = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
_VALUES = st.text(
    st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("\t\"\\$`'# ="), min_size=1
)


def test_values() -> None:
    conf = ConfFile.parse(SAMPLE)
    assert conf.values() == {
        "VERSION": "2",
        "ONBOOT": "yes",
        "CPUUNITS": "1000",
        "NAME": "second",
        "FOREIGN_KEY": "keep me",
        "HTTP_PROXY": "proxy:3128",
    }
    assert conf.get("NAME") == "second"
    assert conf.get("NOTHING") is None
    assert conf.line_of("NAME") == 10
    assert [tuple(problem) for problem in conf.problems()] == [(8, "this is garbage")]


def test_only_the_changed_line_changes() -> None:
    conf = ConfFile.parse(SAMPLE)
    conf.set("ONBOOT", "auto")
    conf.set("CPUUNITS", "1000")  # the same value: its quotes stay
    conf.set("NEW", "value")
    old = "  ONBOOT=yes   # with the node"
    expected = SAMPLE.replace(old, 'ONBOOT="auto"   # with the node') + 'NEW="value"\n'
    assert conf.render() == expected


def test_drop_takes_every_occurrence() -> None:
    conf = ConfFile.parse(SAMPLE)
    conf.set("NAME", None)
    assert "NAME" not in conf.render()
    conf.set("VERSION", "")
    assert conf.get("VERSION") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\r\nB=2\r\n", 'A="3"\r\nB=2\r\nC="4"\r\n'),
        ("A=1\nB=2", 'A="3"\nB=2\nC="4"\n'),
        ("", 'A="3"\nC="4"\n'),
        ("\n\n", '\n\nA="3"\nC="4"\n'),
    ],
)
def test_line_endings(text: str, expected: str) -> None:
    conf = ConfFile.parse(text)
    assert conf.render() == text
    conf.set("A", "3")
    conf.set("C", "4")
    assert conf.render() == expected


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('A="a b"', "a b"),
        (r'A="a\"b\\c\$d"', r'a"b\c$d'),
        ("A='a\\b'", "a\\b"),
        ("A=plain text", "plain text"),
        ("A=word # comment", "word"),
        ("A=a#b", "a#b"),
        ('A="open', "open"),
        ('A="/vz/root/$VEID"', "/vz/root/$VEID"),
        ("A=", ""),
        ('A=""', ""),
        ('A="x" # "y"', "x"),
        ('A="x" y"', 'x" y'),
    ],
)
def test_reading(line: str, value: str) -> None:
    assert ConfFile.parse(line + "\n").get("A") == value


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\0", "\x1b[0m"])
def test_control_characters_are_refused(value: str) -> None:
    conf = ConfFile.parse("A=1\n")
    with pytest.raises(BadValue, match="A"):
        conf.set("A", value)
    assert conf.render() == "A=1\n"


def test_bad_key() -> None:
    with pytest.raises(BadValue):
        ConfFile.parse("").set("a b", "x")


@given(st.text())
def test_any_text_survives(text: str) -> None:
    assert ConfFile.parse(text).render() == text


@given(st.text(), _KEYS, _VALUES)
def test_any_value_can_be_set_and_read_again(text: str, key: str, value: str) -> None:
    conf = ConfFile.parse(text)
    conf.set(key, value)
    again = ConfFile.parse(conf.render())
    assert again.get(key) == value
    before = {k: v for k, v in ConfFile.parse(text).values().items() if k != key}
    assert {k: v for k, v in again.values().items() if k != key} == before


@given(_VALUES)
def test_the_shell_reads_the_same_value(value: str) -> None:
    conf = ConfFile.parse("")
    conf.set("A", value)
    # shlex keeps the backslash before $ and `, which a POSIX shell drops: take it away for it.
    line = conf.render().strip("\n").replace("\\$", "$").replace("\\`", "`")
    if "$VEID" not in value:
        assert shlex.split(line) == [f"A={value}"]


def _original(line: str) -> str:
    """Return what libvzctl's parse_line makes of the value on a line (lib/common.c)."""
    plain, escaped = [], False
    for char in line:
        if char == "\\" and not escaped:
            escaped = True
        else:
            plain.append(char)
            escaped = False
    text = "".join(plain).rstrip(" \t")
    text = text.removesuffix('"') if text.endswith('"') else text
    return text.partition("=")[2].removeprefix('"')


@given(_VALUES.filter(lambda value: "#" not in value))
def test_the_original_reads_the_same_value(value: str) -> None:
    conf = ConfFile.parse("")
    conf.set("A", value)
    assert _original(conf.render().strip("\n")) == value


@given(st.text(), _KEYS)
def test_setting_twice_is_setting_once(text: str, key: str) -> None:
    conf = ConfFile.parse(text)
    conf.set(key, "x y")
    once = conf.render()
    conf.set(key, "x y")
    assert conf.render() == once
    copy = conf.copy()
    copy.set(key, "z")
    assert conf.render() == once
