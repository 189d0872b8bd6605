"""What is to be changed in a mount namespace when lxcfs is another one."""

from __future__ import annotations

from pyvz.container.figures import TARGETS
from pyvz.container.refit import Change, Subject, changes
from pyvz.linux.mount import parse_mountinfo

TABLE = """\
30 29 0:59 / /proc rw,relatime - proc none rw
31 29 0:60 / /sys ro,relatime - sysfs none rw
32 30 0:50 /proc/meminfo /proc/meminfo ro - fuse.lxcfs lxcfs rw
33 30 0:50 /proc/uptime//deleted /proc/uptime ro - fuse.lxcfs lxcfs rw
34 30 0:51 /proc/stat /proc/stat ro - fuse.lxcfs lxcfs rw
35 30 0:61 /.empty/file /proc/diskstats ro - tmpfs tmpfs rw
"""
NAMES = ("/proc/meminfo", "/proc/uptime", "/proc/stat", "/sys/devices/system/cpu/online")


def test_dead_ones_are_replaced_and_living_ones_left() -> None:
    found = changes(parse_mountinfo(TABLE), (0, 51), NAMES, whole=False)
    assert found == [
        Change("/proc/meminfo", "/proc/meminfo", over=True),
        Change("/proc/uptime", "/proc/uptime", over=True),
    ]


def test_what_is_missing_is_added_where_that_is_wanted() -> None:
    found = changes(parse_mountinfo(TABLE), (0, 51), NAMES, whole=True)
    online = "/sys/devices/system/cpu/online"
    assert Change(online, online, over=False) in found
    assert len(found) == 3


def test_nothing_is_added_to_a_proc_that_is_not_the_kernels() -> None:
    table = "30 29 0:59 / /proc rw - fuse.evil evil rw\n"
    assert changes(parse_mountinfo(table), (0, 51), NAMES, whole=True) == []


def test_without_lxcfs_the_dead_ones_go() -> None:
    found = changes(parse_mountinfo(TABLE), None, (), whole=True)
    assert {change.target for change in found} == {"/proc/meminfo", "/proc/uptime", "/proc/stat"}
    assert all(change.over for change in found)


def test_a_stacked_one_counts_by_its_top() -> None:
    table = TABLE + "36 32 0:51 /proc/meminfo /proc/meminfo ro - fuse.lxcfs lxcfs rw\n"
    found = changes(parse_mountinfo(table), (0, 51), NAMES, whole=False)
    assert [change.target for change in found] == ["/proc/uptime"]


def test_subjects_survive_the_command_line() -> None:
    for subject in (Subject(1, 2, True, False), Subject(3, 4, False, True)):
        assert Subject.parse(str(subject)) == subject


def test_diskstats_stay_hidden() -> None:
    assert "/proc/diskstats" not in TARGETS
