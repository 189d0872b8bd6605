"""The network in a guest's own files: one tree per kind, administrators' files, hostile links."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.network.guest import base, names

CONF = {
    "IP_ADDRESS": "10.1.2.3/24 fd00::3",
    "NETIF": "ifname=eth0,mac=c4:37:72:00:00:01,network=lan,gw=10.2.0.1,"
    "ip=10.2.0.2/255.255.255.0:10.2.0.3/255.255.255.0,ip6=fd02::2/64;"
    "ifname=eth1,mac=c4:37:72:00:00:02,network=lan,dhcp=yes;"
    "ifname=eth2,mac=c4:37:72:00:00:03,network=lan,configure=none,ip=10.3.0.2/255.255.255.0",
    "HOSTNAME": "web.example.org",
    "NAMESERVER": "9.9.9.9 2620:fe::fe",
    "SEARCHDOMAIN": "example.org",
}
PROGRAMS = {
    "netplan": ["etc/netplan/", "usr/sbin/netplan"],
    "ifcfg": ["etc/sysconfig/network-scripts/ifup"],
    "networkmanager": [
        "usr/sbin/NetworkManager",
        "etc/systemd/system/multi-user.target.wants/NetworkManager.service",
    ],
    "networkd": [
        "usr/lib/systemd/systemd-networkd",
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
    ],
    "ifupdown": ["etc/network/interfaces", "sbin/ifup"],
}
FOLDERS = {
    "netplan": "etc/netplan",
    "ifcfg": "etc/sysconfig/network-scripts",
    "networkmanager": "etc/NetworkManager/system-connections",
    "networkd": "etc/systemd/network",
    "ifupdown": "etc/network",
}
MAIN = "# main\nsource /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n"


def network(**more: str) -> base.GuestNetwork:
    return base.from_config(Config.parse(CONF | more))


def tree(root: Path, kind: str) -> Path:
    for name in PROGRAMS[kind]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("")
    if kind == "ifupdown":
        (root / "etc/network/interfaces.d").mkdir()
        (root / "etc/network/interfaces").write_text(MAIN)
    return root


def written(root: Path, kind: str) -> dict[str, str]:
    found = sorted((root / FOLDERS[kind]).rglob("*")) if (root / FOLDERS[kind]).exists() else []
    texts = {str(path.relative_to(root)): path.read_text() for path in found if path.is_file()}
    return {name: text for name, text in texts.items() if "pyvz" in text}


def put(root: Path, wanted: base.GuestNetwork) -> None:
    with GuestRoot.open(root) as guest:
        assert base.write(guest, wanted) == ()


def test_values_of_the_configuration() -> None:
    venet, first, second = network().interfaces
    assert (venet.name, venet.kind, venet.default) == ("venet0", "venet", "6")
    assert list(map(str, venet.addresses)) == ["10.1.2.3/32", "fd00::3/128"]
    assert [str(x) for x in first.addresses] == ["10.2.0.2/24", "10.2.0.3/24", "fd02::2/64"]
    assert [(x.version, x.gateway, x.onlink) for x in first.routes()] == [(4, "10.2.0.1", False)]
    assert second.dhcp
    assert not second.addresses
    assert network(APPLY_IPONLY="yes").hostname == ""
    # An interface without a mask stands alone, so its gateway is reached by the link.
    alone = base.from_config(Config.parse({"NETIF": "ifname=eth0,gw=10.2.0.1,ip=10.2.0.2"}))
    assert alone.interfaces[0].routes()[0].onlink


@pytest.mark.parametrize("kind", PROGRAMS)
def test_written_and_taken_away(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path, kind)
    with GuestRoot.open(root) as guest:
        assert base.kind_of(guest) == kind
    put(root, network())
    texts = written(root, kind)
    both = "\n".join(texts.values())
    # fmt: off
    for word in ("10.1.2.3", "fd00::3", "10.2.0.2", "10.2.0.3", "10.2.0.1", "fd02::2", "eth0",
                 "eth1", "venet0"):
        assert word in both, word
    # fmt: on
    assert "10.3.0.2" not in both
    assert all(text.startswith(base.MARK) for text in texts.values())
    before = {name: (root / name).stat().st_ino for name in texts}
    put(root, network())
    assert {name: (root / name).stat().st_ino for name in texts} == before
    put(root, network(NETIF=""))
    assert "eth0" not in "\n".join(written(root, kind).values())
    put(root, base.NOTHING)
    assert written(root, kind) == {}


OWN = {
    "netplan": (
        "etc/netplan/01-mine.yaml",
        "network:\n  ethernets:\n    eth0:\n      dhcp4: yes\n",
    ),
    "ifcfg": ("etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nIPADDR=192.168.0.1\n"),
    "networkmanager": (
        "etc/NetworkManager/system-connections/mine.nmconnection",
        "[connection]\ninterface-name=eth0\n",
    ),
    "networkd": ("etc/systemd/network/50-mine.network", "[Match]\nName=ens3 eth0\n"),
    "ifupdown": ("etc/network/interfaces.d/mine", "auto eth0\niface eth0 inet dhcp\n"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_the_administrator_inside_wrote_stays(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path, kind)
    name, text = OWN[kind]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    put(root, network())
    assert (root / name).read_text() == text
    both = "\n".join(written(root, kind).values())
    assert "10.2.0.2" not in both
    assert "10.1.2.3" in both
    put(root, base.NOTHING)
    assert (root / name).read_text() == text


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_hostile_tree_reaches_nothing_outside(tmp_path: Path, kind: str) -> None:
    root, outside = tree(tmp_path / "root", kind), tmp_path / "outside"
    outside.mkdir()
    folder = root / FOLDERS[kind]
    if kind in {"networkd", "networkmanager"}:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(outside)
    (root / "etc").mkdir(exist_ok=True)
    for name in ("resolv.conf", "hosts", "hostname"):
        (root / "etc" / name).symlink_to(outside / name)
    with GuestRoot.open(root) as guest:
        base.write(guest, network())
        names.write(guest, network())
    assert list(outside.iterdir()) == []


def test_ifupdown_without_a_source_line(tmp_path: Path) -> None:
    root = tree(tmp_path, "ifupdown")
    main = root / "etc/network/interfaces"
    main.write_text("auto lo\niface lo inet loopback\n")
    put(root, network())
    assert main.read_text().startswith("auto lo\niface lo inet loopback\n\n# pyvz: begin")
    assert "up ip -6 address replace fd00::3/128 dev $IFACE nodad" in main.read_text()
    put(root, network())
    assert main.read_text().count("pyvz: begin") == 1
    put(root, base.NOTHING)
    assert main.read_text() == "auto lo\niface lo inet loopback\n"


def test_another_kind_takes_over(tmp_path: Path) -> None:
    root = tree(tmp_path, "ifupdown")
    put(root, network())
    assert written(root, "ifupdown")
    tree(root / "x", "networkd")
    for path in PROGRAMS["networkd"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    put(root, network())
    assert not written(root, "ifupdown")
    assert written(root, "networkd")


def test_names(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    hosts = tmp_path / "etc/hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n")
    with GuestRoot.open(tmp_path) as guest:
        names.write(guest, network())
        assert hosts.read_text() == (
            "127.0.0.1\tlocalhost\n10.1.2.3\tweb.example.org web\t# pyvz\n"
        )
        names.write(guest, network(HOSTNAME="db"))
        assert hosts.read_text() == "127.0.0.1\tlocalhost\n10.1.2.3\tdb\t# pyvz\n"
        hosts.write_text("127.0.1.1 db\n")
        names.write(guest, network(HOSTNAME="db"))
        assert hosts.read_text() == "127.0.1.1 db\n"
        assert (tmp_path / "etc/hostname").read_text() == "db\n"
        text = (tmp_path / "etc/resolv.conf").read_text()
        assert text.endswith("search example.org\nnameserver 9.9.9.9\nnameserver 2620:fe::fe\n")
        # systemd-resolved has its own file, and the link stays.
        (tmp_path / "etc/resolv.conf").unlink()
        (tmp_path / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
        names.write(guest, network())
        assert (tmp_path / "etc/resolv.conf").is_symlink()
        drop_in = (tmp_path / names.RESOLVED).read_text()
        assert "DNS=9.9.9.9 2620:fe::fe\nDomains=example.org\n" in drop_in
