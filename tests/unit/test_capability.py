"""Capability names, numbers and sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.container import capability
from pyvz.errors import BadValue


def test_numbers_are_the_kernels() -> None:
    assert capability.number("chown") == 0
    assert capability.number("CAP_SYS_ADMIN") == 21
    assert capability.number("mknod") == 27
    assert capability.number("checkpoint_restore") == 40
    assert len(capability.NAMES) == 41
    with pytest.raises(BadValue):
        capability.number("ve_admin")


def test_default() -> None:
    assert "sys_boot" in capability.DEFAULT
    assert not capability.DEFAULT & {"sys_module", "sys_rawio", "sys_time", "bpf", "syslog"}


@given(st.sets(st.sampled_from(capability.NAMES)))
def test_masks_there_and_back(names: set[str]) -> None:
    assert capability.names(capability.mask(names)) == names


def test_switches() -> None:
    changed = capability.changed(capability.DEFAULT, [("SYS_TIME", True), ("cap_kill", False)])
    assert changed == capability.DEFAULT - {"kill"} | {"sys_time"}
