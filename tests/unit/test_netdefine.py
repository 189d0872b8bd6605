"""A network's XML as settings, and what is refused by its name."""

from __future__ import annotations

import pytest

from pyvz.gateway import netdefine
from pyvz.gateway.failure import Failure

XML = """
<network>
  <name>shop</name>
  <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
  <bridge stp='on' delay='0'/>
  <domain name='shop'/>
  <ip address='10.213.7.1' netmask='255.255.255.0'>
    <dhcp><range start='10.213.7.100' end='10.213.7.199'/></dhcp>
  </ip>
</network>
"""


def test_a_shared_network() -> None:
    wanted = netdefine.read(XML)
    assert (wanted.name, wanted.uuid) == ("shop", "")
    assert wanted.settings == [
        ("type", "shared"), ("ip", "10.213.7.1/24"), ("dhcp-server", "on"),
        ("ip-scope-start", "10.213.7.100"), ("ip-scope-end", "10.213.7.199"), ("ip6", ""),
        ("description", ""),
    ]  # fmt: skip


def test_a_bridged_network() -> None:
    card = "<forward mode='bridge'><interface dev='eth1'/></forward>"
    wanted = netdefine.read(f"<network><name>n</name>{card}</network>")
    assert wanted.settings == [("type", "bridged"), ("ifname", "eth1"), ("description", "")]
    text = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/></network>"
    assert ("bridge", "br0") in netdefine.read(text).settings


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("<bridge", "<dns><host ip='10.213.7.9'/></dns><bridge", "element dns"),
        ("<dhcp>", "<dhcp><host mac='52:54:00:00:00:01' ip='10.213.7.9'/>", "ip/dhcp/host"),
        ("mode='nat'", "mode='route'", "forward mode 'route'"),
        ("name='shop'/>", "name='other.example'/>", "element domain"),
        ("end='65535'", "end='2000'", "forward/nat/port"),
        ("netmask=", "localPtr='yes' netmask=", "ip/@localPtr"),
    ],
)
def test_what_cannot_be_kept_is_named(old: str, new: str, named: str) -> None:
    with pytest.raises(Failure) as caught:
        netdefine.read(XML.replace(old, new))
    assert named in caught.value.message
