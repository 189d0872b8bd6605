"""Steps of the machine test about storage that this kernel alone can show; see guest.py."""

from __future__ import annotations

import re
from pathlib import Path

from guesttools import MIB, TEMPLATE, need, run, until


def quota_pool(kind: str, *options: str) -> Path:
    """A file system with project quota, and a pool of directories in it."""
    place = Path(f"/srv/{kind}")
    place.mkdir()
    disk = Path(f"/srv/{kind}.disk")
    with disk.open("wb") as file:
        file.truncate(2048 * MIB)
    run(f"mkfs.{kind}", "-q", *options, disk)
    run("mount", "-o", "loop,prjquota", disk, place)
    run("prlsrvctl", "pool", "add", kind, "--driver", "simfs", "--path", place,
        "--option", "quota=yes")  # fmt: skip
    return place


def df(name: str, option: str) -> tuple[int, int]:
    """Total and used of / as `df` inside tells them."""
    words = run("prlctl", "exec", name, "df", option, "/").splitlines()[-1].split()
    return int(words[1]), int(words[2])


def projects(place: Path) -> list[str]:
    """The numbers that have use or limits, without the one of those who have none."""
    found = run("repquota", "-P", "-n", place)
    return [line.split()[0] for line in found.splitlines() if re.match(r"#[1-9]", line)]


def directories_have_a_size() -> None:
    """simfs with project quota, of xfs and ext4: size and files limited, shown by df, freed."""
    xfs, ext4 = quota_pool("xfs"), quota_pool("ext4", "-O", "quota,project")
    run("prlctl", "create", "q1", "--vmtype", "ct", "--ostemplate", TEMPLATE, "--pool", "xfs",
        timeout=600)  # fmt: skip
    for place in (xfs, ext4):
        if place == ext4:
            run("prlctl", "move", "q1", "--dst", "ext4", timeout=600)
            need(projects(xfs) == [], "the old place still counts it")
        run("prlctl", "set", "q1", "--diskspace", "700")
        run("prlctl", "start", "q1")
        until(lambda: "ok" in run("prlctl", "exec", "q1", "echo ok", code=None), "it is up")
        total, used = df("q1", "-k")
        need(total == 700 << 10 and 100 << 10 < used < total, f"df: {total} {used}")
        said = run("prlctl", "exec", "q1", "dd if=/dev/zero of=/big bs=1M count=900", code=None)
        need(re.search("No space|quota exceeded", said), "more was written than the size")
        run("prlctl", "exec", "q1", "rm /big")
        run("vzctl", "set", "q1", "--diskspace", "900M", "--save")
        need(df("q1", "-k")[0] == 900 << 10, "it did not grow while it runs")
        said = run("prlctl", "set", "q1", "--diskspace", "20", code=255)
        need("are in use" in said, "it was made smaller than what is in it")
        files = df("q1", "-i")[1] + 300
        run("vzctl", "set", "q1", "--diskinodes", str(files), "--save")
        need(df("q1", "-i")[0] == files, "df -i shows another number")
        said = run("prlctl", "exec", "q1", "mkdir /m; cd /m; touch $(seq 2000)", code=None)
        need(re.search("No space|quota exceeded", said), "there are more files than allowed")
        run("prlctl", "exec", "q1", "rm -r /m")
        run("vzctl", "set", "q1", "--diskinodes", str(files + 3000), "--save")
        run("prlctl", "restart", "q1")
        until(lambda: "ok" in run("prlctl", "exec", "q1", "echo ok", code=None), "it is back")
        need(df("q1", "-k")[0] == 900 << 10, "a restart lost the size")
        run("prlctl", "stop", "q1", "--kill")
    run("prlctl", "clone", "q1", "--name", "q2", "--dst", "ext4", timeout=600)
    need(len(projects(ext4)) == 2, "the clone has no project of its own")
    run("mkdir", "/srv/plain")
    refused = run("prlsrvctl", "pool", "add", "plain", "--driver", "simfs", "--path", "/srv/plain",
                  "--option", "quota=yes", code=255)  # fmt: skip
    need("keeps no project quota" in refused, "a pool without quota was not refused")
    said = run("prlctl", "move", "q1", "--dst", "/srv/plain", code=255)
    need("keeps no project quota" in said, "its size was lost on the way")
    for name in ("q1", "q2"):
        run("prlctl", "delete", name)
    need(projects(ext4) == [], "numbers are left")
    for kind in ("xfs", "ext4"):
        run("prlsrvctl", "pool", "delete", kind)
        run("umount", f"/srv/{kind}")
