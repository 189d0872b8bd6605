"""Template metadata: names, files, what is shipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvz.errors import BadValue, TemplateError, TemplateNotFound
from pyvz.template import base, catalog, shipped
from pyvz.template.metadata import (
    Metadata,
    app_templates,
    find_app,
    find_os,
    machine,
    os_templates,
)

SHIPPED = Path(__file__).resolve().parents[2] / "templates"


def make(area: Path, name: str, **files: str) -> None:
    dist, version, arch = name.split("/")
    home = area / dist / version / arch / "config/os/default"
    home.mkdir(parents=True)
    for file, text in {"packages": "init\n", "package_manager": "apt\n", **files}.items():
        (home / file).write_text(text)


@pytest.fixture
def area(tmp_path: Path) -> Path:
    make(tmp_path, f"debian/12/{machine()}")
    make(tmp_path, f"debian/13/{machine()}")
    make(tmp_path, f"ubuntu/24.04/{machine()}")
    (tmp_path / "cache").mkdir()
    return tmp_path


def test_names_are_found_with_and_without_dot_and_architecture(area: Path) -> None:
    full = f"debian-12-{machine()}"
    for name in (full, f".{full}", "debian-12", ".debian-12"):
        assert find_os(area, name).name == full


def test_an_unknown_name_gets_near_ones(area: Path) -> None:
    with pytest.raises(TemplateNotFound) as caught:
        find_os(area, "debian-14")
    assert f"debian-12-{machine()}" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "../etc", "a/b", "-x", "a b", "a\n", "$A", "..x"])
def test_what_cannot_be_a_name_is_refused(area: Path, name: str) -> None:
    with pytest.raises(BadValue):
        find_os(area, name)


def test_sub_templates_and_stages(area: Path) -> None:
    home = area / f"debian/12/{machine()}/config/os"
    (home / "default/packages_0").write_text("base-files # first\n\n# nothing\n")
    (home / "web").mkdir()
    (home / "web/packages").write_text("nginx\ninit\n")
    template = find_os(area, f"debian-12-{machine()}-web")
    assert template.packages() == ["base-files", "init", "nginx"]
    assert template.package_manager == "apt"


def test_a_template_without_packages_is_an_error(area: Path) -> None:
    template = find_os(area, "debian-12")
    (template.own.directory / "packages").write_text("# none\n")
    with pytest.raises(TemplateError, match="names no package"):
        template.packages()


def test_environment_lines_must_be_assignments(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text('A=1\nB="two words"\n')
    assert Metadata(tmp_path).environment() == {"A": "1", "B": "two words"}
    (tmp_path / "environment").write_text("rm -rf\n")
    with pytest.raises(TemplateError, match="NAME=VALUE"):
        Metadata(tmp_path).environment()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "summary").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="UTF-8"):
        Metadata(tmp_path).text("summary")
    (tmp_path / "summary").write_bytes(b"x" * (2 << 20))
    with pytest.raises(TemplateError, match="larger"):
        Metadata(tmp_path).text("summary")


def test_applications(area: Path) -> None:
    template = find_os(area, "debian-12")
    own = template.home / "config/app/nginx/default"
    own.mkdir(parents=True)
    (own / "packages").write_text("nginx\n")
    assert [app.name for app in app_templates(template)] == ["nginx"]
    with pytest.raises(TemplateNotFound, match="nginy") as caught:
        find_app(template, "nginy")
    assert "nginx" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("apt", "apt"),
        ("dpkg-x86_64", "apt"),
        ("dpkgx64", "apt"),
        ("dnf", "dnf"),
        ("rpm410x64", "dnf"),
        ("yum", "dnf"),
    ],
)
def test_package_manager_names(name: str, module: str) -> None:
    assert base.module_name(name) == module


def test_an_unknown_package_manager() -> None:
    with pytest.raises(TemplateError, match="pacman"):
        base.module_name("pacman")


# What is shipped


def test_every_shipped_template_is_complete() -> None:
    names = [template.name for template in os_templates(SHIPPED)]
    for wanted in (
        *("debian-11", "debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04"),
        *("almalinux-8", "almalinux-9", "rocky-9", "fedora-42"),
    ):
        assert f"{wanted}-x86_64" in names
    for template in os_templates(SHIPPED):
        facts = catalog.os_facts(template, None)
        for key in ("summary", "description", "osrelease", "repositories", "distribution"):
            assert facts[key], (template.name, key)
        base.module_name(template.package_manager)
        template.base.environment()
        assert app_templates(template)
        for app in app_templates(template):
            assert app.packages()
            assert catalog.app_facts(app)["summary"]


def test_no_shipped_file_names_a_host() -> None:
    for path in SHIPPED.rglob("*"):
        if path.is_file():
            text = path.read_text().replace("netplan.io", "")  # a package
            assert not re.search(r"\w+://|\b[\w-]+\.(org|com|net|io)\b", text), path


def test_upgradable_versions_exist() -> None:
    names = {template.name for template in os_templates(SHIPPED)}
    for template in os_templates(SHIPPED):
        assert set(template.base.lines("upgradable_versions")) <= names


def test_installing_what_is_shipped(tmp_path: Path) -> None:
    source, area, lib = tmp_path / "source", tmp_path / "area", tmp_path / "lib"
    make(source, "debian/12/x86_64", summary="one")
    home = "debian/12/x86_64/config/os/default"
    assert len(shipped.install(source, area, lib)) == 3
    assert shipped.install(source, area, lib) == []
    # The administrator changes one file and removes another; a newer version has three changes.
    (area / home / "packages").write_text("mine\n")
    (area / home / "package_manager").unlink()
    for name in ("packages", "package_manager", "summary"):
        (source / home / name).write_text("newer")
    assert shipped.install(source, area, lib) == [f"{home}/summary"]
    assert (area / home / "packages").read_text() == "mine\n"
    assert not (area / home / "package_manager").exists()
    assert shipped.install(source, area, lib) == []


def test_a_template_area_that_is_new_gets_everything_again(tmp_path: Path) -> None:
    source, area, lib = tmp_path / "source", tmp_path / "area", tmp_path / "lib"
    make(source, "debian/12/x86_64")
    shipped.install(source, area, lib)
    other = tmp_path / "other"
    assert len(shipped.install(source, other, lib)) == 2
