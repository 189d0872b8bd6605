"""How drivers are found, and what a home says about its layout.  (Drivers themselves: kernel.)"""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from pyvz.errors import Busy, PrivateMissing, Unsupported
from pyvz.linux import mount, projectquota
from pyvz.storage import base
from pyvz.storage.base import Capabilities, StorageDriver


def methods() -> list[str]:
    return [
        name for name, _ in inspect.getmembers(StorageDriver, inspect.isfunction) if name[0] != "_"
    ]


def test_what_every_driver_must_do_stays_small() -> None:
    extras = {name for name, _ in inspect.getmembers(base.Extras, inspect.isfunction)}
    assert len(set(methods()) - extras) < 12


@pytest.mark.parametrize("name", base.names())
def test_every_driver_has_all_of_it(name: str) -> None:
    driver = base.load(name)
    assert driver.name == name
    for method in methods():
        wanted = inspect.signature(getattr(StorageDriver, method))
        found = inspect.signature(getattr(type(driver), method))
        names = list(found.parameters)
        assert names[: len(wanted.parameters)] == list(wanted.parameters), method
        more = [found.parameters[name] for name in names[len(wanted.parameters) :]]
        assert all(each.default is not each.empty for each in more), method  # of ManyDisks


@pytest.mark.parametrize("name", base.names())
def test_capabilities_are_known_everywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projectquota, "enforced", lambda _: False)  # it asks the kernel
    assert isinstance(base.load(name).capabilities(tmp_path), Capabilities)


def test_only_drivers_are_listed() -> None:
    assert "base" not in base.names()
    assert "simfs" in base.names()


@pytest.mark.parametrize(
    "name", ["", "base", "nothing", "../simfs", "simfs.Driver", "SIMFS", "a" * 99]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="driver"):
        base.load(name)


def test_a_home_without_a_disk(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PrivateMissing):
            base.find(home)


@pytest.mark.parametrize(
    ("text", "number"), [("4", 4), ("5", 5), ("x", None), ("²", None), ("../../4", None)]
)
def test_layout(tmp_path: Path, text: str, number: int | None) -> None:
    assert base.layout(tmp_path) is None
    (tmp_path / ".ve.layout").symlink_to(text)
    assert base.layout(tmp_path) == number


def test_a_link_is_no_simfs_disk(tmp_path: Path) -> None:
    (tmp_path / "fs").symlink_to("/etc")
    assert not base.load("simfs").present(tmp_path)


MOUNTINFO = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 8:1 /vz/private/a/fs /vz/root/a rw,nodev - ext4 /dev/sda1 rw
31 22 8:2 /vz/private/b/fs /mnt rw - ext4 /dev/sdb1 rw
32 22 0:9 / /vz/private/c/fs/proc rw - proc proc rw
33 22 8:1 /vz/private/ab /mnt/2 rw - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("name", "place"), [("a", "/vz/root/a"), ("b", ""), ("c", "/vz/private/c")]
)
def test_mounts_from_a_home_are_found(
    monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    table = mount.parse_mountinfo(MOUNTINFO)
    monkeypatch.setattr(mount, "mounts", lambda *_: table)
    monkeypatch.setattr(mount, "holding_mount", lambda _path: table[0])
    home = Path("/vz/private") / name
    if not place:
        base.check_unmounted(home)
        return
    with pytest.raises(Busy) as caught:
        base.check_unmounted(home)
    assert place in caught.value.details
    assert os.linesep not in caught.value.message
