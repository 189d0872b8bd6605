"""The memory manager end to end: promises, refusals, limits below what is in use, vcmmdctl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images import busybox_root, busybox_tar
from pyvz.store.paths import Paths
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]

MIB = 1 << 20
LIMIT = ("memory.limit_in_bytes", "memory.max")
EATER = """\
import sys
held = bytearray(int(sys.argv[1]) << 20)
for place in range(0, len(held), 4096):
    held[place] = 1
print("ready", flush=True)
sys.stdin.read()
"""
ENTER = ("/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"')
READER = """\
import sys
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read(1 << 20):
        pass
print("ready", flush=True)
sys.stdin.read()
"""


def create(world: World, name: str, memory: str, guarantee: str = "auto") -> str:
    """A stopped container; returns its UUID."""
    world.run("prlctl", "create", name, "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
    world.run("prlctl", "set", name, "--memsize", memory, "--memguarantee", guarantee)
    (row,) = json.loads(world.run("prlctl", "list", "-a", "-j", name))
    return str(row["uuid"])


def ve(world: World, uuid: str) -> dict[str, object]:
    """What vcmmdctl shows of a container."""
    found: list[dict[str, object]] = json.loads(world.run("vcmmdctl", "list", "-j"))
    return next((row for row in found if row["name"] == uuid), {})


def memory_of(world: World, uuid: str) -> Path:
    """The container's control group with the memory controller."""
    name = f"{Paths(world.root).instance}.slice/{uuid}"
    v1 = Path("/sys/fs/cgroup/memory") / name
    return v1 if v1.exists() else Path("/sys/fs/cgroup") / name


def number(place: Path, *files: str) -> int:
    """The number in the file of these that there is; 2**62 for none."""
    text = next(place / file for file in files if (place / file).exists()).read_text().strip()
    return 2**62 if text == "max" else int(text)


def used(world: World, uuid: str) -> int:
    return number(memory_of(world, uuid), "memory.usage_in_bytes", "memory.current")


def limit(world: World, uuid: str) -> int:
    return number(memory_of(world, uuid), *LIMIT)


@contextmanager
def inside(world: World, uuid: str, program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of the node whose memory is charged to the container, once it is ready."""
    procs = memory_of(world, uuid) / "cgroup.procs"
    process = subprocess.Popen(
        [*ENTER, str(procs), sys.executable, "-c", program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate("")


def test_promises(world: World) -> None:
    web = create(world, "web", "512M", "50")
    world.run("prlctl", "start", "web")
    assert ve(world, web) == {
        "name": web, "type": "CT", "active": True, "guarantee": 256 * MIB, "limit": 512 * MIB,
        "swap": ve(world, web)["swap"], "cache": 2**63 - 1, "cpunum": 0,
    }  # fmt: skip
    free = json.loads(world.run("vcmmdctl", "free", "-j"))
    assert free["guarantee"] == 256 * MIB
    usable = free["available"] + 256 * MIB
    assert f"256Mb of {usable // MIB}Mb" in world.run("prlsrvctl", "info")

    # The percentage is one of the limit, also when that changes while it runs.
    world.run("prlctl", "set", "web", "--memsize", "1G")
    assert ve(world, web)["guarantee"] == 512 * MIB

    # What the node cannot keep is refused with the figures, and nothing is started.
    most = f"{usable // MIB}M"
    db = create(world, "db", most, "100")
    said = world.run("prlctl", "start", "db", code=255)
    assert "can promise only" in said
    assert "promised to 1 others: 512 MiB" in said
    assert "vzctl start --force" in said
    assert world.run("vzctl", "start", "db", code=226)
    assert ve(world, db) == {}
    assert "stopped" in world.run("prlctl", "list", "-a", "-o", "status", "-H", "db")
    said = world.run("prlctl", "set", "web", "--memsize", most, "--memguarantee", "100")
    assert ve(world, web)["guarantee"] == int(most[:-1]) * MIB  # alone it may have all
    said = world.run("vcmmdctl", "update", "web", "--guarantee", "900g", code=1)
    assert said.startswith("VCMMD returned error: Invalid VE configuration\n")
    said = world.run("vcmmdctl", "update", "web", "--guarantee", "900g", "--limit", "-1", code=1)
    assert said.startswith("VCMMD returned error: Unable to apply VE guarantee\n")

    # Whoever insists gets it, and what was promised comes back at the end.
    world.run("vzctl", "start", "db", "--force")
    assert ve(world, db)["active"] is True
    world.run("prlctl", "stop", "db", "--kill")
    world.run("prlctl", "stop", "web", "--kill")
    assert json.loads(world.run("vcmmdctl", "list", "-j")) == []


def test_nonsense(world: World) -> None:
    create(world, "web", "256M")
    before = (world.root / "etc/vz/vcmmd.conf").read_text()
    for text in ("-5", "101", "much", "", "50.5"):
        assert world.run("prlctl", "set", "web", "--memguarantee", text, code=1)
        assert world.run("vzctl", "set", "web", "--memguarantee", text, "--save", code=21)
    said = world.run("vcmmdctl", "set-policy", "fastest", code=1)
    assert said.startswith("VCMMD returned error: Set policy failed(policy name is invalid)\n")
    assert "density, noop, performance, pressure" in said
    assert world.run("prlsrvctl", "set", "--vcmmd-policy", "../noop", code=255)
    assert (world.root / "etc/vz/vcmmd.conf").read_text() == before
    assert world.run("vcmmdctl", "register", "CAR", "x", code=2)
    assert world.run("vcmmdctl", "register", "SRVC", "../../x", code=1)
    assert world.run("vcmmdctl", "update", "nobody", "--limit", "1g", code=1)
    assert world.run("vcmmdctl", "update", "nobody", "--limit", "1q", code=2)
    assert world.run("vcmmdctl", "turn", code=2)


def test_a_lower_limit_never_kills(world: World, tmp_path: Path) -> None:
    web = create(world, "web", "400M")
    world.run("prlctl", "start", "web")
    data = tmp_path / "data"
    data.write_bytes(b"x" * (150 * MIB))
    subprocess.run(["sync", data], check=True)
    with inside(world, web, READER, str(data)), inside(world, web, EATER, "100"):
        # 150 MiB of page cache can be given back, 100 MiB of memory cannot.
        world.run("prlctl", "set", "web", "--memsize", "200M")
        assert used(world, web) <= limit(world, web) == 200 * MIB
        said = world.run("prlctl", "set", "web", "--memsize", "64M", "--swap", "0", code=255)
        assert "web uses" in said
        assert "more than the new limit of 64 MiB" in said
        assert limit(world, web) == 200 * MIB
        assert ve(world, web)["limit"] == 200 * MIB
        assert 'PHYSPAGES="51200:51200"' in (world.root / f"etc/vz/conf/{web}.conf").read_text()
        assert "oom_kill:\t0" in world.run("prlctl", "statistics", "web")


def test_policies_are_exchanged_while_all_run(world: World) -> None:
    web = create(world, "web", "256M", "25")
    world.run("prlctl", "start", "web")
    for name in ("pressure", "noop", "performance", "density"):
        world.run("vcmmdctl", "set-policy", name)
        assert world.run("vcmmdctl", "current-policy") == f"{name}\n"
        assert world.run("vcmmdctl", "current-policy", "--file") == f"{name}\n"
        assert (limit(world, web), ve(world, web)["guarantee"]) == (256 * MIB, 64 * MIB)
    assert "Vcmmd policy: density config=density" in world.run("prlsrvctl", "info")
    assert "* density" in world.run("vcmmdctl", "policies")
    # Nobody may have more than there is: a policy for which that matters is not chosen then.
    world.run("vcmmdctl", "update", "web", "--limit", "-1")
    create(world, "db", "256M")
    world.run("prlctl", "start", "db")
    said = world.run("vcmmdctl", "set-policy", "performance", code=1)
    assert "you have to shutdown all VEs" in said
    assert world.run("vcmmdctl", "current-policy") == "density\n"
    line = world.run("vcmmdctl", "stats", web)
    assert line.startswith(f"{web}: rss=")


def test_a_killed_vzd_leaves_no_limit_behind(world: World) -> None:
    web = create(world, "web", "256M", "25")
    world.run("prlctl", "start", "web")
    world.kill_vzd()
    # As if it had been killed between the two writes with which a v1 group is made to give back.
    place = memory_of(world, web)
    file = next(place / name for name in LIMIT if (place / name).exists())
    file.write_text(str(100 * MIB))
    assert ve(world, web)["guarantee"] == 64 * MIB
    deadline = time.monotonic() + 200
    while limit(world, web) != 256 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_services(world: World) -> None:
    for mount in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        if (mount / "cgroup.procs").exists():
            break
    place = mount / f"pyvz-test-{os.getpid()}.service"
    place.mkdir()
    try:
        name = place.name
        world.run("vcmmdctl", "register", "SRVC", name, "--guarantee", "64m", "--limit", "128m")
        assert ve(world, name)["active"] is False
        assert "already in use" in world.run("vcmmdctl", "register", "srvc", name, code=1)
        world.run("vcmmdctl", "activate", name)
        assert number(place, *LIMIT) == 128 * MIB
        world.run("vcmmdctl", "update", name, "--limit", "-1", "--guarantee", "32m")
        assert number(place, *LIMIT) > 2**50
        assert ve(world, name)["guarantee"] == 32 * MIB
        world.run("vcmmdctl", "deactivate", name)
        world.run("vcmmdctl", "unregister", name)
        assert world.run("vcmmdctl", "unregister", name, code=1)
    finally:
        place.rmdir()
