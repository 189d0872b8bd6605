"""Mount options as values."""

from __future__ import annotations

from pyvz.linux import mountwords, syscall


def test_what_is_of_the_mount_is_told_from_the_rest() -> None:
    found = mountwords.parse(["noatime", " nosuid", "commit=30", "rw", "", "data=ordered", "dev"])
    assert found.attributes == syscall.MOUNT_ATTR_NOATIME | syscall.MOUNT_ATTR_NOSUID
    assert found.rest == ("commit=30", "data=ordered")


def test_access_times_are_kept_one_way() -> None:
    assert mountwords.parse(["noatime", "strictatime"]).attributes == 0x20
    assert mountwords.parse(["strictatime", "noatime", "nodiratime"]).attributes == 0x90
