"""What a machine from a template is told about itself, and the disk that it boots from."""

from __future__ import annotations

import base64
import io
import struct
import tarfile

import pytest

from pyvz.errors import BadValue
from pyvz.model.config import Config
from pyvz.model.grammar_ssh import SshKeys
from pyvz.operations import machinefiles
from pyvz.template import machinetree
from pyvz.vm import bootdisk, commandline


def card(netif: str, **more: str) -> str:
    config = Config.parse({"NETIF": netif, **more})
    made = machinefiles.files("vm1", config)
    return made["etc/systemd/network/50-pyvz-net0.network"]


def test_a_routed_card_has_its_route_on_the_link() -> None:
    text = card(
        "ifname=eth0,mac=00:1c:42:00:00:01,type=routed,ip=10.0.0.2/255.255.255.0,ip6=fd00::2/64"
    )
    assert "MACAddress=00:1c:42:00:00:01\n" in text
    assert "Address=10.0.0.2/32\n" in text
    assert "Address=fd00::2/128\n" in text
    assert "[Route]\nDestination=0.0.0.0/0\nScope=link\n" in text
    assert "[Route]\nGateway=fe80::1" in text


def test_a_bridged_card_has_mask_gateway_and_name_servers() -> None:
    netif = "ifname=eth0,mac=00:1c:42:00:00:01,network=lan,gw=10.0.0.1,ip=10.0.0.2/255.255.255.0"
    text = card(netif, NAMESERVER="9.9.9.9 1.1.1.1", SEARCHDOMAIN="example.org")
    assert "Address=10.0.0.2/24\n" in text
    assert "Gateway=10.0.0.1\nGatewayOnLink=yes\n" in text
    assert "DNS=9.9.9.9\nDNS=1.1.1.1\nDomains=example.org\n" in text
    assert "DHCP=" not in text
    assert "DHCP=ipv4\n" in card("ifname=eth0,mac=00:1c:42:00:00:01,network=lan,dhcp=yes")


def test_a_card_that_is_left_alone_has_no_file() -> None:
    config = Config.parse({"NETIF": "ifname=eth0,mac=00:1c:42:00:00:01,network=lan,configure=none"})
    assert not [path for path in machinefiles.files("vm1", config) if "network" in path]


def test_the_payload_is_an_archive_that_belongs_to_root() -> None:
    config = Config.parse({"HOSTNAME": "a.example.org"})
    data = base64.b64decode(machinefiles.payload("vm1", config))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member for member in tar.getmembers()}
        keys = {"etc/ssh/pyvz_keys/root", "etc/ssh/sshd_config.d/50-pyvz.conf"}
        assert members.keys() == {"etc/hostname", "etc/hosts", *keys}
        assert all(member.uid == 0 and member.mode == 0o644 for member in members.values())
        hosts = tar.extractfile("etc/hosts")
        assert hosts is not None
        assert b"127.0.1.1 a.example.org a\n" in hosts.read()
    assert machinefiles.files("vm1", Config.parse({}))["etc/hostname"] == "vm1\n"


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFQCxC8IXVIw7G4afjasSbWRfg8GvkScJ3NLtzqthaYI"


def test_ssh_keys() -> None:
    config = Config.parse({"VM_SSH_KEYS": f"{KEY} me@home;{KEY} the same  $key"})
    assert config.machine.ssh_keys == (f"{KEY} me@home", f"{KEY} the-same-key")
    made = machinefiles.files("vm1", config)
    assert made["etc/ssh/pyvz_keys/root"].splitlines() == list(config.machine.ssh_keys)
    assert "/etc/ssh/pyvz_keys/%u" in made["etc/ssh/sshd_config.d/50-pyvz.conf"]
    assert SshKeys().parse(f"# a file\n\n{KEY}\n") == (KEY,)
    assert machinefiles.files("vm1", Config.parse({}))["etc/ssh/pyvz_keys/root"] == ""


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        f'command="reboot" {KEY}',
        KEY.replace("ssh-ed25519", "ssh-rsa"),
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 not base64",
        "\n".join(f"{KEY} {number}" for number in range(33)),
    ],
)
def test_what_is_no_ssh_key(text: str) -> None:
    with pytest.raises(BadValue):
        SshKeys().parse(text)


def test_host_and_guest_speak_of_the_same_name() -> None:
    assert commandline.FW_CFG == machinetree.FW_CFG


def test_the_first_sector() -> None:
    sector = bootdisk.mbr(b"\xeb\x63" + b"c" * 510, 3 << 30)
    assert len(sector) == 512
    assert sector[:2] == b"\xeb\x63"
    assert sector[510:] == b"\x55\xaa"
    active, _, kind, _, start, length = struct.unpack("<B3sB3sII", sector[446:462])
    assert (active, kind, start) == (0x80, 0x83, 2048)
    assert (start + length) * 512 == 3 << 30
    assert sector[462:510] == b"\0" * 48
