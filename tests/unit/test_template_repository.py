"""Repositories: variables, url.map, the node's own apt, keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.errors import ConfigError, TemplateError
from pyvz.store.paths import Paths
from pyvz.template import apt, dnf, repository, settings
from pyvz.template.base import Recipe
from pyvz.template.repository import Repository, Variables, node_variables, parse_url_map, resolve

RELEASE = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
TARGETS = """\
Debian|bookworm|bookworm|main|http://mirror.test/debian/|
Debian|bookworm|bookworm|contrib|http://mirror.test/debian/|
Debian|bookworm-updates|bookworm-updates|main|http://mirror.test/debian/|$(SIGNED_BY)
Debian|bookworm-security|bookworm-security|main|http://mirror.test/debian-security/|/keys/a.gpg
Vendor|bookworm|bookworm|main|http://vendor.test/apt/|
"""


def test_the_nodes_own_sources_give_the_variables() -> None:
    found = node_variables(RELEASE, TARGETS)
    assert found.values == {
        "DEBIAN_MIRROR": "http://mirror.test/debian",
        "DEBIAN_UPDATES": "http://mirror.test/debian",
        "DEBIAN_SECURITY": "http://mirror.test/debian-security",
        "DEB_SERVER": "http://mirror.test",
    }
    assert found.keys == {"http://mirror.test/debian-security": "/keys/a.gpg"}


def test_before_the_first_update_there_is_no_origin() -> None:
    text = "|$(CODENAME)|bookworm|main|http://mirror.test/debian/|$(SIGNED_BY)\n"
    values = node_variables(RELEASE, text).values
    assert values["DEBIAN_MIRROR"] == "http://mirror.test/debian"


@pytest.mark.parametrize("release", [{}, {"ID": "fedora"}, {"ID": "debian"}])
def test_another_node_gives_nothing(release: dict[str, str]) -> None:
    assert node_variables(release, TARGETS).values == {}


def test_url_map() -> None:
    text = "# comment\n\n$A\thttp://a.test/x/ \n$B/pub   http://b.test\n"
    assert parse_url_map(text, "url.map") == {"A": "http://a.test/x", "B/pub": "http://b.test"}


@pytest.mark.parametrize("line", ["A http://x", "$A", "$a http://x", "nonsense"])
def test_a_bad_line_of_url_map_is_named(line: str) -> None:
    with pytest.raises(TemplateError, match=r"url\.map, line 2"):
        parse_url_map(f"#\n{line}\n", "url.map")


def test_lines_are_resolved() -> None:
    variables = Variables({"A": "http://a.test", "A_B": "http://ab.test"})
    lines = [
        "$A one main contrib",
        "deb [trusted=yes] $A_B/x two main",
        "[optional=yes] $NONE three main",
    ]
    found = resolve(lines, variables, template="t")
    assert found == [
        Repository("http://a.test", "one", ("main", "contrib")),
        Repository("http://ab.test/x", "two", ("main",), trusted=True),
    ]


def test_a_variable_that_is_not_set_is_named_with_the_file() -> None:
    with pytest.raises(TemplateError, match=r"\$ALMALINUX_MIRROR") as caught:
        resolve(["$ALMALINUX_MIRROR/9/os"], Variables({}), template="almalinux-9-x86_64")
    assert "/etc/vztt/url.map" in caught.value.hint
    assert "$ALMALINUX_MIRROR" in caught.value.hint


@pytest.mark.parametrize("line", ["one two", "/etc/passwd", "$A'x s main", ""])
def test_what_is_no_url_is_refused(line: str) -> None:
    with pytest.raises(TemplateError, match="does not name a repository"):
        resolve([line], Variables({"A": "http://a.test/"}), template="t")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="signing key"):
        resolve(["$A s main"], Variables({"A": "http://a.test"}), template="t", key="/no/such")
    key = tmp_path / "key"
    key.write_text("")
    found = resolve(["$A s main"], Variables({"A": "http://a.test"}), template="t", key=str(key))
    assert found[0].key == str(key)


def test_a_caching_server_is_put_before_every_url() -> None:
    variables = Variables({"A": "http://a.test/x"}, {}, "http://cache.test/download/")
    found = resolve(["$A s main"], variables, template="t")
    assert found[0].url == "http://cache.test/download/a.test/x"


def test_sources_list() -> None:
    found = [
        Repository("http://a.test", "s", ("main",), key="/k.gpg"),
        Repository("http://b.test", "./", (), trusted=True),
    ]
    assert apt.sources_text(found) == (
        "deb [signed-by=/k.gpg] http://a.test s main\ndeb [trusted=yes] http://b.test ./\n"
    )
    assert apt.sources_text(found[:1], guest=True) == "deb http://a.test s main\n"
    with pytest.raises(TemplateError, match="no apt repository"):
        apt.sources_text([Repository("http://a.test")])


def recipe(*repositories: Repository) -> Recipe:
    return Recipe("toy-1-x86_64", "x86_64", "1", ("init",), repositories, {}, Path("/pm"))


def test_repo_file() -> None:
    text = dnf.repository_file(
        recipe(
            Repository("http://a.test", key="/k"),
            Repository("http://b.test", trusted=True, mirrors=True),
        )
    )
    assert "baseurl=http://a.test\nenabled=1\ngpgcheck=1\ngpgkey=file:///k\n" in text
    assert "mirrorlist=http://b.test\nenabled=1\ngpgcheck=0\n" in text


def test_unsigned_rpm_repositories_are_refused() -> None:
    with pytest.raises(TemplateError, match="no signing key"):
        dnf.repository_file(recipe(Repository("http://a.test")))


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        settings,
        "read_node_variables",
        lambda: Variables({"A": "http://node.test", "B": "http://b"}),
    )
    etc = tmp_path / "etc/vztt"
    etc.mkdir(parents=True)
    (etc / "url.map").write_text("$A http://map.test\n")
    (etc / "vztt.conf").write_text(
        'HTTP_PROXY="http://proxy.test:3128/"\nHTTP_PROXY_USER="me"\n'
        'HTTP_PROXY_PASSWORD="p@ss"\nEXCLUDE="kernel* grub"\nARCHIVE="lz4"\n'
    )
    found = settings.load(Paths(tmp_path))
    assert found.variables.values == {"A": "http://map.test", "B": "http://b"}
    assert found.environment["https_proxy"] == "http://me:p%40ss@proxy.test:3128/"
    assert found.exclude == ("kernel*", "grub")
    assert found.compression == "lz4"
    (etc / "vztt.conf").write_text('ARCHIVE="lzrw"\n')
    with pytest.raises(ConfigError, match="lzrw"):
        settings.load(Paths(tmp_path))


def test_the_target_format_is_what_apt_knows() -> None:
    assert repository.TARGET_FORMAT.count("|") == 5
