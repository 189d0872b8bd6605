"""Our images and those of qemu-img: each accepts the other's, with equal content."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

import pytest

from pyvz.image import convert, identity
from pyvz.image.check import check
from pyvz.image.delta import layer, stack, stack_of
from pyvz.image.descriptor import EXPANDED, NO_PARENT, Descriptor, Image, Shot
from pyvz.image.digest import digest
from pyvz.image.disk import TOP_GUID
from pyvz.linux.run import run
from pyvz.model.task import NoProgress

MIB = 1 << 20
SIZE = 40 * MIB
QUIET = NoProgress()

pytestmark = pytest.mark.requires("program:qemu-img")


def qemu(*argv: object) -> str:
    return run(["qemu-img", *map(str, argv)], timeout=120).stdout


def assert_sound(path: Path) -> None:
    found = json.loads(qemu("check", "-f", "parallels", "--output=json", path))
    assert not found.get("corruptions")
    assert not found.get("leaks")
    assert found["check-errors"] == 0


def assert_equal(raw: Path, image: Path) -> None:
    assert "identical" in qemu("compare", "-f", "raw", "-F", "parallels", raw, image)


def raw_disk(path: Path, *, seed: int = 1, size: int = SIZE) -> Path:
    """A disk with data at its ends, across clusters and in the middle of holes."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        places = [0, size - 5000, 3 * MIB - 700, *(chance.randrange(size - MIB) for _ in range(6))]
        for place in places:
            file.seek(place)
            file.write(chance.randbytes(chance.randrange(512, 4096)))
    return path


def thin(path: Path, clusters: dict[int, bytes], *, version: int, count: int = 40) -> Path:
    """A thin image written here from the published format, not by our code: vzctl.md 7.3."""
    magic = b"WithoutFreeSpace" if version == 1 else b"WithouFreSpacExt"
    sectors = count * 2048
    size = struct.pack("<II", sectors, 0) if version == 1 else struct.pack("<Q", sectors)
    head = magic + struct.pack("<IIIII", 2, 16, 1, 2048, count) + size
    head += struct.pack("<IIIQ", 0, 2048, 0, 0)
    bat = [0] * count
    body = b""
    for number, (index, data) in enumerate(clusters.items()):
        bat[index] = (number + 1) * (2048 if version == 1 else 1)
        body += data
    path.write_bytes((head + struct.pack(f"<{count}I", *bat)).ljust(MIB, b"\0") + body)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_disk(tmp_path / "disk.raw")


def test_qemu_accepts_what_we_create_grow_and_shrink(tmp_path: Path) -> None:
    image = tmp_path / "root.hds"
    identity.create(image, SIZE)
    assert_sound(image)
    identity.grow(image, 3 * SIZE)
    assert_sound(image)
    identity.shrink(image, 2 * SIZE)
    assert_sound(image)
    assert json.loads(qemu("info", "-f", "parallels", "--output=json", image))["virtual-size"] == (
        2 * SIZE
    )


def test_what_we_convert_compares_equal_in_every_form(tmp_path: Path, raw: Path) -> None:
    with stack([raw], raw_base=True) as source:
        wanted = digest(source, QUIET)
        forms = {
            "identity": convert.to_identity(source, tmp_path / "identity", QUIET),
            "v1": convert.to_thin(source, tmp_path / "v1", QUIET, version=1),
            "v2": convert.to_thin(source, tmp_path / "v2", QUIET, version=2),
            "small": convert.to_thin(source, tmp_path / "small", QUIET, cluster=64 << 10),
        }
    for name, found in forms.items():
        image = tmp_path / name
        assert found == wanted
        assert_sound(image)
        assert_equal(raw, image)
        assert check(image).clean
        with stack([image]) as source:
            convert.to_raw(source, tmp_path / f"{name}.raw", QUIET)
        assert (tmp_path / f"{name}.raw").read_bytes() == raw.read_bytes()
    assert (tmp_path / "identity").stat().st_blocks * 512 < SIZE // 2  # zeros are holes


@pytest.mark.parametrize("size", [SIZE, SIZE + 512, SIZE - 4096])
def test_images_of_qemu_are_read(tmp_path: Path, size: int) -> None:
    raw = raw_disk(tmp_path / "disk.raw", seed=size, size=size)
    image = tmp_path / "qemu.hds"
    qemu("convert", "-f", "raw", "-O", "parallels", raw, image)
    assert check(image).errors == ()
    with stack([image]) as source, stack([raw], raw_base=True) as plain:
        assert digest(source, QUIET) == digest(plain, QUIET)
        assert convert.to_identity(source, tmp_path / "own", QUIET) == digest(plain, QUIET)
    assert_sound(tmp_path / "own")
    # The same disk, but of whole clusters: only zeros may be added.
    qemu("compare", "-f", "parallels", "-F", "parallels", image, tmp_path / "own")


@pytest.mark.parametrize("version", [1, 2])
def test_thin_images_by_the_published_format(tmp_path: Path, version: int) -> None:
    chance = random.Random(version)
    clusters = {index: chance.randbytes(MIB) for index in (39, 0, 7, 8)}
    image = thin(tmp_path / "thin.hds", clusters, version=version)
    assert_sound(image)
    with stack([image]) as source:
        assert {index for index in range(40) if source.read(index * MIB, MIB) != bytes(MIB)} == set(
            clusters
        )
        convert.to_raw(source, tmp_path / "thin.raw", QUIET)
    assert_equal(tmp_path / "thin.raw", image)


def test_a_stack_of_deltas_reads_as_qemu_reads_it(tmp_path: Path) -> None:
    chance = random.Random(3)
    guids = ["{" + f"{number}" * 8 + "-0000-4000-8000-000000000000}" for number in (1, 2)]
    names = ["root.hds", "root.hds.1", "root.hds.2"]
    for name in names:
        picked = {chance.randrange(40): chance.randbytes(MIB) for _ in range(12)}
        thin(tmp_path / name, picked, version=2)
    described = Descriptor(
        SIZE,
        images=tuple(map(Image, [*guids, TOP_GUID], names)),
        snapshots=tuple(map(Shot, [*guids, TOP_GUID], [NO_PARENT, *guids])),
        mode=EXPANDED,
    )
    for depth, guid in enumerate([*guids, TOP_GUID], start=1):
        node: dict[str, object] = {}
        for name in names[:depth]:
            inner = {
                "driver": "parallels",
                "file": {"driver": "file", "filename": f"{tmp_path}/{name}"},
            }
            node = {**inner, **({"backing": node} if node else {})}
        target = tmp_path / f"flat{depth}"
        with stack_of(tmp_path, described, guid) as source:
            convert.to_identity(source, target, QUIET)
        qemu("convert", "-O", "raw", "json:" + json.dumps(node), tmp_path / f"raw{depth}")
        assert_sound(target)
        assert_equal(tmp_path / f"raw{depth}", target)


def test_the_checksum_can_be_computed_with_other_tools(tmp_path: Path, raw: Path) -> None:
    wanted = hashlib.sha256(
        b"".join(
            hashlib.sha256(raw.read_bytes()[at : at + MIB]).digest() for at in range(0, SIZE, MIB)
        )
    ).hexdigest()
    with layer(raw, raw=True), stack([raw], raw_base=True) as source:
        assert digest(source, QUIET) == wanted
