"""Steps of the machine test about storage that this kernel alone can show; see guest.py."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from guesttools import MIB, need, run, until


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


def tiny_template(name: str) -> str:
    """A root file system of busybox alone: a Debian takes minutes to copy and compare here."""
    tree = Path("/srv/tiny")
    for directory in ("bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "root"):
        (tree / directory).mkdir(parents=True)
    shutil.copy2("/bin/busybox", tree / "bin/busybox")
    for link in run("/bin/busybox", "--list-full").split():
        if link != "bin/busybox" and (tree / link).parent.is_dir():
            (tree / link).symlink_to("/bin/busybox")
    (tree / "etc").mkdir()
    (tree / "etc/inittab").write_text("::sysinit:/bin/true\n")
    log = tree / "var/log/journal"  # with ACLs, as systemd makes it; xfs shows them twice
    log.mkdir(parents=True)
    run("setfacl", "-m", "g:4:rx,d:g:4:rx", log)
    run("tar", "-czf", f"/vz/template/cache/{name}.plain.tar.gz", "--acls", "-C", tree, ".")
    return name


def directories_have_a_size() -> None:
    """simfs with project quota, of xfs and ext4: size and files limited, shown by df, freed."""
    tiny = tiny_template("tiny-1-x86_64")
    xfs, ext4 = quota_pool("xfs"), quota_pool("ext4", "-O", "quota,project")
    run("prlctl", "create", "q1", "--vmtype", "ct", "--ostemplate", tiny, "--pool", "xfs")
    for place in (xfs, ext4):
        if place == ext4:
            run("prlctl", "move", "q1", "--dst", "ext4")
            need(projects(xfs) == [], "the old place still counts it")
        run("prlctl", "set", "q1", "--diskspace", "40")
        run("prlctl", "start", "q1")
        until(lambda: "ok" in run("prlctl", "exec", "q1", "echo ok", code=None), "it is up")
        total, used = df("q1", "-k")
        need(total == 40 << 10 and 1 << 10 < used < total, f"df: {total} {used}")
        said = run("prlctl", "exec", "q1", "dd if=/dev/zero of=/big bs=1M count=60", code=None)
        need(re.search("No space|quota exceeded", said), "more was written than the size")
        run("prlctl", "exec", "q1", "rm /big")
        run("vzctl", "set", "q1", "--diskspace", "50M", "--save")
        need(df("q1", "-k")[0] == 50 << 10, "it did not grow while it runs")
        said = run("prlctl", "set", "q1", "--diskspace", "1", code=255)
        need("are in use" in said, "it was made smaller than what is in it")
        files = df("q1", "-i")[1] + 100
        run("vzctl", "set", "q1", "--diskinodes", str(files), "--save")
        need(df("q1", "-i")[0] == files, "df -i shows another number")
        said = run("prlctl", "exec", "q1", "mkdir /m; cd /m; touch $(seq 200)", code=None)
        need(re.search("No space|quota exceeded", said), "there are more files than allowed")
        run("prlctl", "exec", "q1", "rm -r /m")
        run("vzctl", "set", "q1", "--diskinodes", str(files + 1000), "--save")
        run("prlctl", "stop", "q1", "--kill")
        run("prlctl", "start", "q1")
        until(lambda: "ok" in run("prlctl", "exec", "q1", "echo ok", code=None), "it is back")
        need(df("q1", "-k")[0] == 50 << 10, "a stop lost the size")
        run("vzctl", "set", "q1", "--diskspace", "unlimited", "--save")
        need(df("q1", "-k")[0] > 1000 << 10, "it still has a size")
        said = run("prlctl", "exec", "q1", "dd if=/dev/zero of=/big bs=1M count=60", code=None)
        need("60+0 records out" in said, "it is still limited")
        run("prlctl", "exec", "q1", "rm /big")
        run("vzctl", "set", "q1", "--diskspace", "50M", "--save")
        run("prlctl", "stop", "q1", "--kill")
    run("prlctl", "clone", "q1", "--name", "q2", "--dst", "ext4")
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
