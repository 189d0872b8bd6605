"""What a container does with a network of its own: bridges, address translation, tunnels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from networld import OUTSIDE4, NetWorld, answered, busybox_root, busybox_tar
from networld import networld as world

__all__ = ["busybox_root", "busybox_tar", "world"]

pytestmark = pytest.mark.requires("program:nft")

# As Docker makes it for the containers inside: a bridge, translation, a policy that drops.  The
# other end of a pair is called veth0 (busybox knows no name for it).
BRIDGE = """\
set -e
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip link add v0 type veth
ip link set v0 master docker0 up
nft -f - <<X
table ip nat {
  chain post { type nat hook postrouting priority 100
    ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
  }
}
table ip filter {
  chain FORWARD { type filter hook forward priority 0; policy drop
    ct state established,related accept
    iifname "docker0" accept
  }
}
X
echo 1 >/proc/sys/net/ipv4/ip_forward
unshare -n sleep 600 &
inner=$!
while [ "$(readlink /proc/$inner/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link set veth0 netns $inner
nsenter -t $inner -n sh -c '
  ip addr add 172.17.0.2/16 dev veth0; ip link set veth0 up; ip route add default via 172.17.0.1'
echo $inner >/inner
"""


def bring(program: str, root: Path) -> None:
    """Put a program of the node and its libraries into a tree."""
    path = shutil.which(program, path="/usr/sbin:/usr/bin")
    assert path is not None
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    for name in (path, *re.findall(r"(/\S+) \(0x", listed)):
        target = root / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)


def test_bridges_and_tunnels_inside(world: NetWorld) -> None:
    world.create("a", "--ipadd", "10.77.0.1", "--devnodes", "net/tun:rw", start=False)
    world.prlctl("mount", "a")
    bring("nft", next((world.root / "vz/root").iterdir()))
    world.prlctl("umount", "a")
    world.prlctl("start", "a")
    world.inside("a", f"cat >/up <<'Y'\n{BRIDGE}Y\n")
    assert "ready" in world.inside("a", "sh /up </dev/null >/log 2>&1 && echo ready || cat /log")
    inner = ("nsenter", "-t", "$(cat /inner)", "-n")
    assert answered(lambda *words: world.inside("a", *inner, *words, code=None), OUTSIDE4)
    world.inside("a", "tunctl", "-t", "tun9")
    assert "tun9" in world.inside("a", "ip", "link")
    # The node has seen nothing of it.
    assert not {"docker0", "v0", "tun9"} & set(world.links())
    assert "172.17" not in world.rules()
    world.prlctl("set", "a", "--netfilter", "disabled")
    world.prlctl("restart", "a")
    assert "172.17" not in world.inside("a", "nft", "list", "ruleset", code=None)
    assert world.pings("a", OUTSIDE4)
