"""Families of distributions; apt's plans; records of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.errors import BadValue
from pyvz.template import catalog, guest, record
from pyvz.template.base import Package, Update
from pyvz.template.catalog import chosen
from pyvz.template.dpkg import parse_plan


@pytest.mark.parametrize(
    ("name", "row"),
    [("debian", "debian"), ("ubuntu", "ubuntu"), ("rocky", "redhat"), ("plan9", "other")],
)
def test_families(name: str, row: str) -> None:
    assert guest.family(name).name == row


def test_plans_of_apt() -> None:
    plan = parse_plan(
        "Inst libc6 [2.36-9] (2.36-10 Debian:12.15/oldstable [amd64])\n"
        "Inst nginx (1:1.22.1-9 Debian:12.15/oldstable, Other:1 [all]) []\n"
        "Conf libc6 (2.36-10 Debian:12.15/oldstable [amd64])\n"
        "Inst gcc-12:amd64 (12_1 Debian [amd64])\n"
        "Remv exim4 [4.96-15]\n"
    )
    assert plan.files == (
        "libc6_2.36-10_amd64.deb",
        "nginx_1%3a1.22.1-9_all.deb",
        "gcc-12_12%5f1_amd64.deb",
    )
    assert plan.updates == (Update("libc6", "2.36-9", "2.36-10"),)
    assert plan.new == ("nginx", "gcc-12")
    assert plan.removed == ("exim4",)


def test_records_of_a_container(tmp_path: Path) -> None:
    assert record.timestamp(tmp_path, "nginx") == ""
    record.note(tmp_path, "nginx")
    assert record.timestamp(tmp_path, "nginx").startswith("20")
    record.save_packages(tmp_path, [Package("a", "1:2-3", "amd64", "x")])
    text = (tmp_path / "templates/vzpackages").read_text()
    assert text == " a                      amd64     1:2-3\n"
    record.forget(tmp_path, "nginx")
    record.forget(tmp_path, "nginx")
    assert record.timestamp(tmp_path, "nginx") == ""
    with pytest.raises(BadValue):
        record.note(tmp_path, "../../etc")


def test_chosen_parameters() -> None:
    facts: catalog.Row = {"name": "x", "arch": "y", "cached": "no"}
    assert list(chosen(facts, ["cached", "name"])) == ["cached", "name"]
    assert chosen(facts, []) == facts
    with pytest.raises(BadValue, match="nosuch"):
        chosen(facts, ["nosuch"])
