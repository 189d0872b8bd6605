"""What is told to CRIU and what its words and files mean: requests, images, logs, frames, dumps."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from pyvz.container import criu, criu_pb2, criuimages, criurequest, criuwords, dumpfile, dumpwriter
from pyvz.container.criu import Criu, Verdict
from pyvz.container.criurequest import DumpRequest
from pyvz.container.frame import External, Frame
from pyvz.errors import RestoreError, Unsupported
from pyvz.model.task import NoProgress

NEWEST = Criu("/x/criu", (4, 2, 1))
FRAME = Frame(
    uuid="u",
    criu="4.2.1",
    kernel="6.1",
    machine="x86_64",
    ids=(65536, 65536),
    cgroup="/pyvz.slice/u",
    externals=(External("pyvz-0", "/dev/null"), External("pyvz-1", "/srv")),
    record={"pid": 77},
    inner={"system.slice": {"pids.max": "5"}},
    network={},
    made=1.0,
)


def image(kind: int, *messages: bytes, service: bool = False) -> bytes:
    head = struct.pack("<II", 0x55105940 if service else 0x54564319, kind)
    return head + b"".join(struct.pack("<I", len(each)) + each for each in messages)


def timer(*, left: int, interval: int) -> bytes:
    entry = criu_pb2.file_entry(type=17, id=3)
    entry.tfd.id, entry.tfd.vsec, entry.tfd.vnsec = 3, 0, left
    entry.tfd.isec, entry.tfd.insec = 0, interval
    # Field 200 stands for all that we do not know: it must survive.
    return entry.SerializeToString() + b"\xc2\x0c\x03abc"


def test_a_dump_asks_for_what_a_container_needs() -> None:
    request = criurequest.dump(DumpRequest(FRAME), NEWEST, 77)
    options = request.opts
    assert (request.type, options.pid, options.images_dir_fd) == (criu_pb2.DUMP, 77, 4)
    assert list(options.external) == ["mnt[/dev/null]:pyvz-0", "mnt[/srv]:pyvz-1"]
    assert [each.path for each in options.cg_root] == ["/pyvz.slice/u"]
    assert options.network_lock == criu_pb2.SKIP
    assert options.empty_ns == 0x40000000
    assert not options.leave_running
    assert not options.HasField("ps")


def test_post_copy_and_rounds() -> None:
    lazy = DumpRequest(FRAME, lazy_pages=True, page_fd=5, status_fd=6)
    options = criurequest.dump(lazy, NEWEST, 77).opts
    # CRIU takes the field for a port then: the socket is told in a configuration file.
    assert (options.lazy_pages, options.HasField("ps"), options.status_fd) == (True, False, 6)
    rounds = DumpRequest(FRAME, track_mem=True, parent="../1")
    made = criurequest.pre_dump(rounds, NEWEST, 77)
    assert made.type == criu_pb2.SINGLE_PRE_DUMP
    assert (made.opts.track_mem, made.opts.parent_img) == (True, "../1")


def test_a_restore_maps_external_mounts_to_their_places() -> None:
    places = {"pyvz-0": "/dev/null", "pyvz-1": "/run/criu/pyvz-1"}
    old = Criu("/x/criu", (3, 17, 1))
    made = criurequest.restore(FRAME, old, places, root="/run/criu/root", cgroup="/b/u", lazy=False)
    options = made.opts
    assert list(options.external) == ["mnt[pyvz-0]:/dev/null", "mnt[pyvz-1]:/run/criu/pyvz-1"]
    assert (options.root, options.rst_sibling) == ("/run/criu/root", True)
    assert [each.path for each in options.cg_root] == ["/b/u"]
    assert options.network_lock == criu_pb2.IPTABLES  # CRIU before 4.0 cannot leave it to us


def test_stopped_periodic_timers_are_set_going(tmp_path: Path) -> None:
    messages = [timer(left=0, interval=9), timer(left=5, interval=9), timer(left=0, interval=0)]
    path = tmp_path / "files.img"
    path.write_bytes(image(0x56303138, *messages))
    assert criuimages.mend_timers(tmp_path) == 1
    data = path.read_bytes()
    assert data.count(b"abc") == 3
    assert criuimages.mend_timers(tmp_path) == 0
    assert path.read_bytes() == data


def regular(number: int, flags: int) -> bytes:
    entry = criu_pb2.file_entry(type=1, id=number)
    entry.reg.id, entry.reg.flags = number, flags
    return entry.SerializeToString() + b"\xc2\x0c\x03abc"


def test_a_program_whose_file_is_held_by_path_gets_it_opened(tmp_path: Path) -> None:
    """One description for all such programs, besides what is held, which stays as it was."""
    files = [regular(7, os.O_PATH), regular(9, os.O_RDONLY), timer(left=0, interval=0)]
    (tmp_path / "files.img").write_bytes(image(0x56303138, *files))
    for pid, number in ((1, 9), (2, 7), (3, 7)):
        program = criu_pb2.mm_entry(exe_file_id=number).SerializeToString()
        (tmp_path / f"mm-{pid}.img").write_bytes(image(0x57492820, program + b"\xc2\x0c\x03abc"))
    assert criuimages.open_executables(tmp_path) == 1
    data = (tmp_path / "files.img").read_bytes()
    found = [criu_pb2.file_entry.FromString(each) for each in split(data)]
    assert data.startswith(image(0x56303138, *files))
    assert [each.id for each in found] == [7, 9, 3, 10]
    assert (found[3].reg.id, found[3].reg.flags, found[3].type) == (10, os.O_RDONLY, 1)
    assert data.count(b"abc") == 4
    programs = [(tmp_path / f"mm-{pid}.img").read_bytes() for pid in (1, 2, 3)]
    ids = [criu_pb2.mm_entry.FromString(split(each)[0]).exe_file_id for each in programs]
    assert ids == [9, 10, 10]
    assert all(each.count(b"abc") == 1 for each in programs)
    assert criuimages.open_executables(tmp_path) == 0
    assert (tmp_path / "files.img").read_bytes() == data


@pytest.mark.parametrize("cut", [3, 9, 14])
def test_a_torn_image_is_refused(tmp_path: Path, cut: int) -> None:
    data = image(0x56303138, timer(left=0, interval=9))
    (tmp_path / "files.img").write_bytes(data[:cut])
    with pytest.raises(RestoreError):
        criuimages.mend_timers(tmp_path)


def mounted(number: int, above: int, fstype: int, root: str, place: str) -> bytes:
    entry = criu_pb2.mnt_entry(
        mnt_id=number, parent_mnt_id=above, fstype=fstype, root=root, mountpoint=place
    )
    return entry.SerializeToString() + b"\xc2\x0c\x03abc"


def test_parts_of_the_cgroup_tree_get_their_roots(tmp_path: Path) -> None:
    """Only cgroup mounts upon cgroup mounts; what is in a circle ends, too."""
    tree, part = "/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/x.service/memory.pressure"
    path = tmp_path / "mountpoints-13.img"
    messages = [
        mounted(1, 99, 5, "/", "/"),
        mounted(4, 3, 23, "/", part),
        mounted(3, 2, 23, "/", tree),
        mounted(2, 1, 2, "/", "/sys"),
        mounted(5, 1, 5, "/", "/srv"),
        mounted(6, 7, 23, "/", "/a"),
        mounted(7, 6, 23, "/", "/a/b"),
    ]
    path.write_bytes(image(0x55563928, *messages))
    criuimages.root_cgroup_binds(tmp_path)
    data = path.read_bytes()
    found = [criu_pb2.mnt_entry.FromString(each) for each in split(data)]
    assert [each.root for each in found][:5] == ["/", part.removeprefix(tree), "/", "/", "/"]
    assert data.count(b"abc") == len(messages)
    criuimages.root_cgroup_binds(tmp_path)
    assert path.read_bytes() == data


def split(data: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def test_ids_are_mapped_to_another_range(tmp_path: Path) -> None:
    entry = criu_pb2.userns_entry()
    for extents in (entry.uid_map, entry.gid_map):
        extents.add(first=0, lower_first=65536, count=65536)
    path = tmp_path / "userns-10.img"
    path.write_bytes(image(0x55474906, entry.SerializeToString()))
    criuimages.map_ids(tmp_path, 131072, 65536)
    found = criu_pb2.userns_entry.FromString(path.read_bytes()[12:])
    assert [x.lower_first for x in (*found.uid_map, *found.gid_map)] == [131072, 131072]
    with pytest.raises(RestoreError):
        criuimages.map_ids(tmp_path, 131072, 1)


def test_statistics(tmp_path: Path) -> None:
    assert criuimages.dump_stats(tmp_path) is None
    entry = criu_pb2.stats_entry()
    numbers = {"freezing_time": 1, "frozen_time": 2, "memdump_time": 3, "memwrite_time": 4}
    entry.dump.CopyFrom(
        criu_pb2.dump_stats_entry(
            pages_scanned=9, pages_skipped_parent=5, pages_written=6, pages_lazy=7, **numbers
        )
    )
    data = image(0x57093306, entry.SerializeToString(), service=True)
    (tmp_path / "stats-dump").write_bytes(data)
    assert criuimages.dump_stats(tmp_path) == (1, 2, 6, 5, 7)


LOG = """\
(00.000001) Version: 4.2.1 (gitid 0)
(00.045454) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not
(00.046000)     12: Error ({place}): {text}
(00.099473) Error (criu/cr-dump.c:2331): Dumping FAILED.
"""


@pytest.mark.parametrize(
    ("place", "text", "why"),
    [
        ("criu/namespaces.c:1", "Can't dump nested uts namespace for 12", "namespace of its own"),
        ("criu/mount.c:1", "mnt: FS mnt ./dev/x dev 0x2 root / unsupported id 3", "file system"),
        ("criu/files.c:1", "Can't lookup mount=4 for fd=5 path=/dev/null", "of the node open"),
        ("criu/image.c:635", "Unable to open tty-info.img: Permission denied", "image of its"),
        ("criu/files-reg.c:9", "Unable to open srv/x: No such file", "missing or has changed"),
        ("criu/x.c:1", "something new", "CRIU says: something new"),
    ],
)
def test_logs_in_words(place: str, text: str, why: str) -> None:
    words = criuwords.explain_text(LOG.format(place=place, text=text))
    assert why in words.why
    assert words.line == f"Error ({place}): {text}"


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("skqueue: Control messages in queue, not supported", True),
        ("parse_fdinfo_pid_s: error parsing [inotify wd:1 ino:365 sdev:700001 ] for 8", True),
        ("Can't dump nested uts namespace for 12", False),
    ],
)
def test_what_is_past_in_a_moment(text: str, passing: bool) -> None:
    assert criuwords.explain_text(LOG.format(place="criu/x.c:1", text=text)).passing == passing


def test_a_log_without_an_error_or_none(tmp_path: Path) -> None:
    assert criuwords.explain_text("(00.1) fine\n").why == "CRIU does not say why"
    assert criuwords.explain(tmp_path / "none").why == "CRIU has left no log"


def test_a_frame_is_read_back_and_garbage_refused(tmp_path: Path) -> None:
    FRAME.save(tmp_path)
    assert Frame.load(tmp_path) == FRAME
    for text in ("", "[]", '{"format": 99}', '{"format": 1}'):
        (tmp_path / "pyvz.json").write_text(text)
        with pytest.raises(RestoreError):
            Frame.load(tmp_path)
    (tmp_path / "pyvz.json").unlink()
    with pytest.raises(RestoreError, match="missing"):
        Frame.load(tmp_path)


def test_verdicts() -> None:
    bad = Criu("/usr/sbin/criu", (3, 17, 1), "dump: vdso")
    assert Verdict(NEWEST, (bad, NEWEST)).require() == NEWEST
    with pytest.raises(Unsupported) as caught:
        Verdict(None, (bad,)).require()
    assert "vdso" in caught.value.details
    assert "script/criu" in caught.value.hint
    with pytest.raises(Unsupported, match="no CRIU"):
        Verdict(None, ()).require()
    assert criu.Criu("x", ()).release == "unknown"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    (images / "pages-1.img").write_bytes(bytes(range(256)) * 5000 + bytes(9 << 20))
    (images / "empty.img").write_bytes(b"")
    (images / "dump.log").write_text("not kept")
    dumpwriter.pack(images, tmp_path / "Dump", NoProgress(), sync=False)
    return tmp_path / "Dump"


def test_a_dump_file_holds_everything(packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    index = dumpfile.unpack(packed, again, NoProgress())
    assert {path.name for path in again.iterdir()} == {"pages-1.img", "empty.img"}
    for name in ("pages-1.img", "empty.img"):
        assert (again / name).read_bytes() == (tmp_path / "images" / name).read_bytes()
    assert index.stored < index.size // 4
    assert not (tmp_path / "Dump.new").exists()


def test_every_flipped_byte_is_noticed(packed: Path) -> None:
    for path in packed.iterdir():
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 7)):
            torn = bytearray(whole)
            torn[at] ^= 0x20
            path.write_bytes(torn)
            with pytest.raises(RestoreError):
                dumpfile.verify(packed, NoProgress())
        path.write_bytes(whole)
    dumpfile.verify(packed, NoProgress())


@pytest.mark.parametrize(
    "change",
    [
        {"files": [["../x", 3]], "pieces": []},
        {"files": [["x", 3]], "pieces": []},
        {"files": [["x", 3]], "pieces": [[0, 1, 3, 0, 0, 3, ""]]},
        {"files": [["x", 3]], "pieces": [[1, 0, 3, 0, 0, 3, ""]]},
        {"format": 7},
    ],
)
def test_an_index_that_cannot_be_is_refused(packed: Path, change: dict[str, object]) -> None:
    outer = json.loads((packed / "index.json").read_text())
    body = json.dumps(json.loads(outer["body"]) | change)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (packed / "index.json").write_text(json.dumps({"digest": digest, "body": body}))
    with pytest.raises(RestoreError):
        dumpfile.load(packed)
