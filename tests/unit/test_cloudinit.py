"""The seed that a guest with cloud-init is given."""

from __future__ import annotations

import fcntl
import io
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from pyvz.errors import ConfigError
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.secret import Secret
from pyvz.operations import cloudinit, cloudpassword, machinehardware, machineimport
from pyvz.operations.machinedrives import Opened
from pyvz.operations.options import NewPassword
from pyvz.vm import cidata, commandline
from pyvz.vm.ovf import Appliance
from pyvz.vm.spec import Layout

GOLDEN = Path(__file__).parent / "golden"
UUID = "1b3c7c7e-2222-4a4a-8b8b-000000000002"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2vPVqMjSQjXy5vSF5dE0yIxNSOKyzXBvTzzdGkP3Xz me"
MAC = "00:1C:42:00:00:0"
MACHINES = {
    "plain": Config.parse({"NETIF": f"ifname=eth0,mac={MAC}1,network=lan,dhcp=yes"}),
    "everything": Config.parse(
        {
            "HOSTNAME": "web.example.org",
            "NAMESERVER": "9.9.9.9 2620:fe::fe",
            "SEARCHDOMAIN": "example.org example.net",
            "VM_SSH_KEYS": KEY,
            "NETIF": f"ifname=eth0,mac={MAC}1,type=routed,ip=10.0.0.2/255.255.255.0:10.0.0.3,"
            f"ip6=fd00::2/64;"
            f"ifname=eth1,mac={MAC}2,network=lan,configure=none;"
            f"ifname=eth2,mac={MAC}3,network=lan,gw=10.1.0.1,ip=10.1.0.2/255.255.255.0,"
            f"gw6=fd01::1,ip6=fd01::2/64",
        }
    ),
}
PASSWORDS = {"everything": {"root": "$6$salt$hash", "debian": "$6$other$hash"}}


@pytest.mark.parametrize("name", MACHINES)
def test_seed(name: str) -> None:
    """Golden: what differs on purpose is written anew with PYVZ_REGEN=1."""
    made = cloudinit.files(UUID, "vm1", MACHINES[name], PASSWORDS.get(name))
    text = "".join(f"== {file}\n{content}" for file, content in made.items())
    path = GOLDEN / f"cloudinit-{name}.txt"
    if os.environ.get("PYVZ_REGEN"):
        path.write_text(text)
    assert text == path.read_text()


def network(netif: str, **more: str) -> dict[str, Any]:
    made = cloudinit.files(UUID, "vm1", Config.parse({"NETIF": netif, **more}))
    parsed = json.loads(made["network-config"])
    assert parsed["version"] == 2
    cards: dict[str, Any] = parsed["ethernets"]
    return cards


@pytest.mark.parametrize(
    ("given", "address", "gateway"),
    [
        ("10.0.0.2", "10.0.0.2/31", "10.0.0.3"),
        ("10.0.0.3", "10.0.0.3/31", "10.0.0.2"),
        ("10.0.0.2:10.0.0.3", "10.0.0.2/30", "10.0.0.1"),
        ("10.0.0.1:10.0.0.0", "10.0.0.1/30", "10.0.0.2"),
    ],
)
def test_a_routed_card_has_a_gateway_that_is_not_itself(
    given: str, address: str, gateway: str
) -> None:
    card = network(f"ifname=eth0,mac={MAC}1,type=routed,ip={given}")["eth0"]
    assert card["addresses"][0] == address
    assert card["routes"] == [{"to": "0.0.0.0/0", "via": gateway}]


def test_only_one_card_leads_everywhere_by_itself() -> None:
    cards = network(
        f"ifname=eth0,mac={MAC}1,type=routed,ip=10.0.0.2;"
        f"ifname=eth1,mac={MAC}2,type=routed,ip=10.0.1.2,ip6=fd00::2",
        NAMESERVER="9.9.9.9",
    )
    assert "routes" not in cards["eth1"]
    assert cards["eth1"]["addresses"] == ["10.0.1.2/32", "fd00::2/128"]
    assert "nameservers" in cards["eth0"]
    assert "nameservers" not in cards["eth1"]


def test_what_is_written_is_what_yaml_reads() -> None:
    """Nobody's words become more than words: JSON quotes them, and is YAML."""
    config = Config.parse({"HOSTNAME": "a.example.org", "VM_SSH_KEYS": KEY})
    made = cloudinit.files(UUID, "vm1", config)
    first, _, rest = made["user-data"].partition("\n")
    assert first == "#cloud-config"
    assert json.loads(rest)["ssh_authorized_keys"] == [KEY]
    assert json.loads(rest)["hostname"] == "a"
    assert "packages" not in json.loads(rest)  # there is no network to get them from
    assert json.loads(made["network-config"])["ethernets"] == {}
    assert json.loads(cloudinit.files(UUID, "vm1", Config.parse({}))["meta-data"]) == {
        "instance-id": UUID,
        "local-hostname": "vm1",
    }


def test_the_volume_is_read_by_its_names() -> None:
    files = {"meta-data": "{}\n", "user-data": "#cloud-config\n" + "ü" * 5000, "network-config": ""}
    data = cidata.volume(files)
    assert data[0x8000:0x8006] == b"\x01CD001"  # ISO 9660 (ECMA-119, 8.4)
    assert data[0x8028:0x8048].rstrip() == b"cidata"
    disc = pycdlib.PyCdlib()
    disc.open_fp(io.BytesIO(data))
    for name, text in files.items():
        for place in ("joliet_path", "rr_path"):
            read = io.BytesIO()
            disc.get_file_from_iso_fp(read, **{place: f"/{name}"})
            assert read.getvalue().decode() == text
    disc.close()


def test_nobody_changes_the_volume() -> None:
    descriptor = cidata.opened(b"seed")
    try:
        assert os.pread(descriptor, 9, 0) == b"seed"
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(PermissionError):
            os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_TRUNC)
    finally:
        os.close(descriptor)


def test_a_machine_has_it_as_a_disc_of_its_own(tmp_path: Path) -> None:
    env = Environment(UUID, UUID, "vm1", Kind.VM, tmp_path)
    none = Opened((), (), ())
    with ExitStack() as opened:
        assert cloudinit.with_seed(env, Config.parse({}), none, opened) == none
        wanted = Config.parse({"VM_CLOUD_INIT": "yes"})
        (drive,), descriptors, _ = cloudinit.with_seed(env, wanted, none, opened)
        assert (drive.readonly, drive.boot, drive.file) == (True, 0, f"/dev/fdset/{descriptors[0]}")
    device = commandline.drive_device(drive, "q35")
    assert (device["driver"], device["bus"]) == ("scsi-cd", "scsi0.0")
    assert device["scsi-id"] == 8  # saved states look for it there
    assert all(node["read-only"] for node in commandline.blockdevs(drive))


def test_passwords_are_kept_as_hashes(tmp_path: Path) -> None:
    env = Environment(UUID, UUID, "vm1", Kind.VM, tmp_path)
    assert cloudpassword.passwords(env) == {}
    cloudpassword.keep(env, NewPassword("root", Secret("$6$old$hash"), crypted=True))
    cloudpassword.keep(env, NewPassword("debian", Secret("$6$salt$hash"), crypted=True))
    path = tmp_path / cloudpassword.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    cloudpassword.keep(env, NewPassword("root", Secret("$6$new$hash"), crypted=True))
    assert cloudpassword.passwords(env) == {"root": "$6$new$hash", "debian": "$6$salt$hash"}
    path.write_text("[1]")
    with pytest.raises(ConfigError):
        cloudpassword.passwords(env)


def test_who_has_it() -> None:
    """Images from elsewhere; a saved state has it when it had it."""
    assert machineimport.settings(machineimport.Imported(Appliance(), ()))["machine.cloud_init"]
    new = Config.parse({"VM_CLOUD_INIT": "yes"})
    old = Layout("q35", 1, 1, 64, 64, settings=(("VM_CLOUD_INIT", ""),))
    assert not machinehardware.applied(new, old).machine.cloud_init
    assert machinehardware.applied(new, old._replace(settings=())).machine.cloud_init
