"""Virtual machines move between two nodes over a real ssh: stopped, suspended, while they run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bundles
from networld import run
from pyvz.vm import image
from tinyguest import tiny_iso
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "two_nodes"]

pytestmark = pytest.mark.requires("root", "sshd", "program:qemu-system-x86_64", "program:qemu-img")

ADDRESS = "10.99.0.60"
SLOTS = 40
# Writes numbered blocks round and round, each flushed before it is counted.
WRITE = f"""i=0
while [ ! -e /run/stop ]; do
    i=$((i + 1))
    printf %065536d $i | dd of=/dev/sda bs=64k seek=$((i % {SLOTS})) conv=fsync,notrunc 2>/dev/null
    echo $i >/run/new; mv /run/new /run/count
done
echo done >/run/stopped
"""
# Reads the last blocks from the disk and prints how many of them are right.
READ = f"""echo 3 >/proc/sys/vm/drop_caches
last=$(cat /run/count); i=$((last - {SLOTS} + 1)); good=0
while [ $i -le $last ]; do
    want=$(printf %065536d $i | md5sum)
    got=$(dd if=/dev/sda bs=64k skip=$((i % {SLOTS})) count=1 2>/dev/null | md5sum)
    [ "$want" = "$got" ] && good=$((good + 1))
    i=$((i + 1))
done
echo right $good
"""


class Machine:
    """A machine of the tiny guest on node a, with a small disk and a card in "lan"."""

    def __init__(self, nodes: TwoNodes, iso: Path, name: str = "vm1") -> None:
        self.nodes, self.name = nodes, name
        self.at = nodes.a
        nodes.lan_networks()
        prlctl = nodes.a.prlctl
        prlctl("create", name, "--vmtype", "vm", "-d", "debian", "--no-hdd")
        prlctl("set", name, "--memsize", "160", "--cpus", "1", "--cloud-init", "yes")
        prlctl("set", name, "--device-add", "hdd", "--size", "64M")
        prlctl("set", name, "--device-set", "cdrom0", "--image", os.fspath(iso))
        prlctl("set", name, "--device-add", "net", "--network", "lan", "--ipadd", f"{ADDRESS}/24")

    @property
    def other(self) -> Side:
        return self.nodes.b if self.at is self.nodes.a else self.nodes.a

    def take_a_bundle(self) -> Path:
        """Have a ploop disk for its disk; returns its path below the directory of homes."""
        homes = self.at.root / "vz/vmprivate"
        home = next(homes.iterdir())
        self.at.prlctl("set", self.name, "--device-del", "hdd0", "--destroy-image")
        disk = bundles.made(self.at.cli, home / "own.hdd", 64)
        self.at.prlctl("set", self.name, "--device-add", "hdd", "--image", os.fspath(disk))
        return disk.relative_to(homes)

    def boot(self) -> None:
        """Start it, give it its address, have it echo on port 7777."""
        self.at.prlctl("start", self.name)
        self.wait()
        self.inside(f"ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up")
        self.inside("nc -ll -p 7777 -e /bin/cat >/dev/null 2>&1 </dev/null &")

    def load(self) -> None:
        """Have it write to its disk all the time."""
        self.at.cli("prlctl", "exec", self.name, f"cat >/run/write <<'END'\n{WRITE}\nEND")
        self.inside("sh /run/write >/dev/null 2>&1 </dev/null &")
        wait_for(lambda: self.count() > SLOTS, 120)

    def wait(self) -> None:
        argv = self.at.argv("prlctl", "exec", self.name, "true")
        deadline = time.monotonic() + 400

        def answers() -> bool:
            return not subprocess.run(
                argv, env=self.at.env, capture_output=True, check=False
            ).returncode

        while not answers():
            assert time.monotonic() < deadline, "the guest does not boot"
            time.sleep(0.3)

    def inside(self, command: str) -> str:
        return self.at.prlctl("exec", self.name, command)

    def count(self) -> int:
        return int(self.inside("cat /run/count 2>/dev/null || echo 0"))

    def whole(self) -> None:
        """Every block that was counted is on the disk."""
        self.inside("touch /run/stop")
        wait_for(lambda: "done" in self.inside("cat /run/stopped 2>/dev/null; true"))
        self.at.cli("prlctl", "exec", self.name, f"cat >/run/read <<'END'\n{READ}\nEND")
        assert self.inside("sh /run/read") == f"right {SLOTS}\n"

    def move(self, *options: str, fetched: bool = False) -> str:
        """Migrate it to the other node, or have that one fetch it."""
        here, there = self.at, self.other
        words = ("migrate", *options, "--ssh", f"-F {self.nodes.ssh_config}")
        if fetched:
            out = there.prlctl(*words, f"{here.name}/{self.name}", "localhost")
        else:
            out = here.prlctl(*words, self.name, there.name)
        assert here.state(self.name) == ""
        assert not list((here.root / "vz/vmprivate").glob("*.migrated"))
        self.at = there
        return out


def test_live(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """A connection from outside, its memory and its disk go on; there and back."""
    machine = Machine(two_nodes, tiny_iso)
    machine.boot()
    machine.load()
    with two_nodes.talk(ADDRESS, 7777) as talk:
        talk.exchange()
        out = machine.move()
        assert "stood still" in out, out
        assert machine.at.state("vm1") == "running"
        talk.exchange()
        before = machine.count()
        machine.move(fetched=True)
        assert machine.at.state("vm1") == "running"
        talk.exchange()
        assert machine.count() >= before
    machine.whole()


class Still:
    """A machine without a guest on node a: a ploop disk with a snapshot, and noise in both."""

    def __init__(self, nodes: TwoNodes) -> None:
        self.a, self.b = nodes.a, nodes.b
        self.ssh = ("--ssh", f"-F {nodes.ssh_config}")
        a = self.a
        a.prlctl("create", "vm1", "--vmtype", "vm", "-d", "debian", "--no-hdd")
        a.prlctl("set", "vm1", "--memsize", "64", "--cpus", "1")
        home = next((a.root / "vz/vmprivate").iterdir())
        self.here = bundles.made(a.cli, home / "own.hdd")
        self.there = self.b.root / "vz/vmprivate" / home.name / "own.hdd"
        a.prlctl("set", "vm1", "--device-add", "hdd", "--image", os.fspath(self.here))
        self.shot = a.prlctl("snapshot", "vm1").split("{")[1].split("}")[0]
        a.prlctl("snapshot-switch", "vm1", "-i", self.shot)  # it writes into another file now
        self.first = bundles.digest(self.here)
        bundles.put(self.here, os.urandom(1 << 20), 5 << 20)
        self.second = bundles.digest(self.here)


def test_a_bundle(two_nodes: TwoNodes) -> None:
    """A ploop disk and its snapshots go while it runs."""
    still = Still(two_nodes)
    a, b = still.a, still.b
    a.prlctl("start", "vm1")
    a.prlctl("migrate", *still.ssh, "vm1", "b")
    assert (a.state("vm1"), b.state("vm1")) == ("", "running")
    assert not still.here.parent.exists()
    b.prlctl("stop", "vm1", "--kill")
    bundles.check(b.cli, still.there)
    assert bundles.digest(still.there) == still.second
    b.prlctl("snapshot-switch", "vm1", "-i", still.shot)
    assert bundles.digest(still.there) == still.first


@pytest.mark.long
def test_a_bundle_at_rest(two_nodes: TwoNodes) -> None:
    """A ploop disk and its snapshots go as files, stopped and suspended."""
    still = Still(two_nodes)
    a, b = still.a, still.b
    a.prlctl("migrate", *still.ssh, "vm1", "b")
    bundles.check(b.cli, still.there)
    assert (bundles.digest(still.there), still.here.exists()) == (still.second, False)
    b.prlctl("start", "vm1")
    b.prlctl("suspend", "vm1")
    b.prlctl("migrate", *still.ssh, "vm1", "a")
    assert (a.state("vm1"), b.state("vm1")) == ("suspended", "")
    a.prlctl("resume", "vm1")
    a.prlctl("stop", "vm1", "--kill")
    bundles.check(a.cli, still.here)
    assert bundles.digest(still.here) == still.second
    a.prlctl("snapshot-switch", "vm1", "-i", still.shot)
    assert bundles.digest(still.here) == still.first


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_busy_bundle(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """A ploop disk that its guest writes to: every block that was counted follows."""
    machine = Machine(two_nodes, tiny_iso)
    disk = machine.take_a_bundle()
    machine.boot()
    machine.load()
    with two_nodes.talk(ADDRESS, 7777) as talk:
        for _ in range(5):
            before = machine.count()
            print(machine.move().splitlines()[-1], flush=True)
            talk.exchange()
            assert machine.count() >= before
    machine.whole()
    machine.at.prlctl("stop", "vm1", "--kill")
    bundles.check(machine.at.cli, machine.at.root / "vz/vmprivate" / disk)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_live_twenty_times(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    machine = Machine(two_nodes, tiny_iso)
    machine.boot()
    machine.load()
    with two_nodes.talk(ADDRESS, 7777) as talk:
        for _ in range(20):
            before = machine.count()
            print(machine.move().splitlines()[-1], flush=True)
            talk.exchange()
            assert machine.count() >= before
    machine.whole()


def keep_key(side: Side) -> None:
    """Have the node know the key "k"."""
    path = side.root / "etc/vz/keys/k"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text("a passphrase that is long enough")
    path.chmod(0o600)


@pytest.mark.long
@pytest.mark.requires("program:swtpm")
def test_two_disks_and_a_tpm(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """Every disk follows, one of them encrypted, and what the TPM knows since the boot and ever."""
    machine = Machine(two_nodes, tiny_iso)
    keep_key(two_nodes.a)
    add = ("--device-add", "hdd", "--size", "32M", "--iface", "virtio", "--encryption-keyid", "k")
    two_nodes.a.prlctl("set", "vm1", *add)
    two_nodes.a.prlctl("set", "vm1", "--tpm", "on")
    machine.boot()
    machine.load()
    machine.inside("dd if=/dev/urandom of=/dev/vda bs=1M count=32 2>/dev/null; sync")
    disk = machine.inside("md5sum </dev/vda")
    registers = machine.inside("cat /sys/class/tpm/tpm0/pcr-sha256/*")
    assert len(set(registers.split())) > 2  # the firmware has measured what it started
    words = ("migrate", "--ssh", f"-F {two_nodes.ssh_config}", "vm1", "b")
    assert "no key 'k'" in two_nodes.a.cli("prlctl", *words, code=255)
    assert two_nodes.b.state("vm1") == ""
    keep_key(two_nodes.b)
    for _ in range(2):
        machine.move()
        home = next((machine.at.root / "vz/vmprivate").iterdir())
        assert image.look(home / "harddisk1.hdd").luks
        machine.inside("echo 3 >/proc/sys/vm/drop_caches")
        assert machine.inside("md5sum </dev/vda") == disk
        assert machine.inside("cat /sys/class/tpm/tpm0/pcr-sha256/*") == registers
        assert (home / "tpm/tpm2-00.permall").stat().st_size > 0
    machine.whole()


@pytest.fixture
def shared(two_nodes: TwoNodes) -> Iterator[TwoNodes]:
    """Both nodes with one /vz/vmprivate, as on NFS."""
    places = [side.root / "vz/vmprivate" for side in (two_nodes.a, two_nodes.b)]
    for place in places:
        place.mkdir(mode=0o700)
    run("mount", "--bind", str(places[0]), str(places[1]))
    try:
        yield two_nodes
    finally:
        run("umount", str(places[1]))


@pytest.mark.long
@pytest.mark.parametrize("name", ["harddisk.hdd", "own.hdd/root.hds"])
def test_shared_storage(shared: TwoNodes, tiny_iso: Path, name: str) -> None:
    """Only the memory goes; the image stays where it is, and whole."""
    machine = Machine(shared, tiny_iso)
    if name != "harddisk.hdd":
        machine.take_a_bundle()
    machine.boot()
    machine.load()
    image = next((shared.a.root / "vz/vmprivate").glob(f"*/{name}"))
    inode = image.stat().st_ino
    with shared.talk(ADDRESS, 7777) as talk:
        for _ in range(2):
            machine.move()
            talk.exchange()
            assert image.stat().st_ino == inode
    machine.whole()


@pytest.fixture
def userfaults() -> Iterator[None]:
    """Let programs without rights have userfaultfd, as post-copy needs it."""
    switch = Path("/proc/sys/vm/unprivileged_userfaultfd")
    before = switch.read_text()
    try:
        switch.write_text("1")
    except OSError:
        pytest.skip("vm.unprivileged_userfaultfd cannot be set")
    yield
    switch.write_text(before)


@pytest.mark.long
@pytest.mark.usefixtures("userfaultfd_switch")
def test_post_copy(two_nodes: TwoNodes, tiny_iso: Path, userfaults: None) -> None:
    """It goes on before its memory has followed, and all of it follows."""
    machine = Machine(two_nodes, tiny_iso)
    machine.boot()
    machine.load()
    with two_nodes.talk(ADDRESS, 7777) as talk:
        out = machine.move("--post-copy")
        assert "stood still" in out, out
        talk.exchange()
    machine.whole()


@pytest.mark.long
def test_stopped_suspended_and_refused(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """What stands still moves as it is, with its snapshots; a copy; what cannot go is told."""
    machine = Machine(two_nodes, tiny_iso)
    a, b = two_nodes.a, two_nodes.b
    ssh = ("--ssh", f"-F {two_nodes.ssh_config}")
    a.prlctl("snapshot", "vm1", "-n", "before")
    uuid = a.rows("vm1")[0]["uuid"]
    a.prlctl("migrate", "--keep-src", *ssh, "vm1", "b/copy")
    assert (a.state("vm1"), b.state("copy")) == ("stopped", "stopped")
    assert b.rows("copy")[0]["uuid"] != uuid
    assert mac(b, "copy") != mac(a, "vm1")
    assert b.prlctl("snapshot-list", "copy") == a.prlctl("snapshot-list", "vm1")
    b.prlctl("delete", "copy")
    # with its snapshots, stopped, and suspended with its memory
    machine.move()
    assert b.rows("vm1")[0]["uuid"] == uuid
    machine.boot()
    machine.inside("echo kept >/run/kept")
    out = b.prlctl("migrate", *ssh, "vm1", "a", code=None)
    assert "has snapshots and runs" in out
    assert b.state("vm1") == "running"
    b.prlctl("suspend", "vm1")
    b.prlctl("migrate", *ssh, "vm1", "a")
    assert (a.state("vm1"), b.state("vm1")) == ("suspended", "")
    a.prlctl("resume", "vm1")
    machine.at = a
    machine.wait()
    assert machine.inside("cat /run/kept") == "kept\n"
    # what cannot go is told before anything is done
    a.prlctl("stop", "vm1", "--kill")
    b.cli("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian", "--no-hdd")
    assert "already" in a.prlctl("migrate", *ssh, "vm1", "b", code=None)
    assert a.state("vm1") == "stopped"


@pytest.mark.long
def test_offline(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """A running one is stopped here and started there, with its disk."""
    machine = Machine(two_nodes, tiny_iso)
    machine.boot()
    machine.inside("echo kept >/run/kept; echo kept | dd of=/dev/sda conv=fsync 2>/dev/null")
    machine.move("--offline")
    assert machine.at.state("vm1") == "running"
    machine.wait()
    assert machine.inside("head -n 1 /dev/sda; ls /run/kept 2>&1; true").startswith("kept\nls:")
    # One that cannot be stopped in time, as nothing answers inside, is killed as by `stop`.
    machine.at.prlctl("reset", "vm1")
    machine.move("--offline")
    assert machine.at.state("vm1") == "running"


def mac(side: Side, name: str) -> str:
    found = [line for line in side.prlctl("list", "-i", name).splitlines() if "mac=" in line]
    return found[0].split("mac=")[1].split()[0]
