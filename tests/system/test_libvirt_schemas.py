"""All XML that clients are given is valid by libvirt's own schemas (virt-xml-validate)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]

pytestmark = [
    pytest.mark.requires(
        "root", "program:virsh", "program:virt-xml-validate", "program:xmllint", "program:qemu-img"
    ),
    pytest.mark.usefixtures("host_network"),
]

CONTAINER = (
    "--ipadd", "10.99.3.5", "--memsize", "128M", "--cpus", "1", "--cpuunits", "2000",
    "--description", "words", "--cpulimit", "50", "--ioprio", "5", "--nodemask", "0",
    "--device-add", "net", "--network", "inner",
    "--ipadd", "10.99.4.5/24",
)  # fmt: skip
MACHINE = (
    ("--device-add", "net", "--network", "inner", "--adapter-type", "e1000"),
    (
        "--vnc-mode",
        "auto",
        "--vnc-nopasswd",
        "--efi-boot",
        "on",
        "--description",
        "words",
        "--cpu-model",
        "Westmere",
        "--cpu-sockets",
        "1",
        "--cpu-hotplug",
        "off",
        "--hugepages",
        "on",
        "--memory-lock",
        "yes",
        "--cpu-features",
        "+aes -hle",
        "--channels",
        "org.example.0",
    ),
    ("--efi-secure-boot", "on", "--tpm", "on"),
)


def test_everything_is_valid(world: World, tmp_path: Path) -> None:
    world.run("prlsrvctl", "net", "add", "inner")
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "set", "ct1", *CONTAINER)
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    for words in MACHINE:
        world.run("prlctl", "set", "vm1", *words)
    virsh = Virsh(world)
    virsh("metadata", "ct1", "urn:n", "--key", "n", "--set", "<a>kept</a>")
    virsh("desc", "ct1", "--title", "--new-desc", "A title")
    virsh("snapshot-create-as", "ct1", "one", "--disk-only")
    virsh("checkpoint-create-as", "vm1", "two", "kept since then")
    found = {
        "domain": [virsh("dumpxml", name) for name in ("ct1", "vm1")],
        "capability": [virsh("capabilities")],
        "domaincaps": [virsh("domcapabilities", "--virttype", "vz")],
        "domainsnapshot": _all(virsh, "snapshot-list ct1 --name", "snapshot-dumpxml ct1"),
        "domaincheckpoint": _all(virsh, "checkpoint-list vm1 --name", "checkpoint-dumpxml vm1"),
        "network": _all(virsh, "net-list --all --name", "net-dumpxml"),
        "nodedev": _all(virsh, "nodedev-list", "nodedev-dumpxml"),
        "interface": [virsh("iface-dumpxml", "lo")],
        "storagepool": _all(virsh, "pool-list --all --name", "pool-dumpxml"),
        "storagevol": [],
    }
    for pool in virsh("pool-list", "--all", "--name").split():
        listed = virsh("vol-list", pool).splitlines()
        names = [line.split()[0] for line in listed if line.strip()]
        found["storagevol"] += [virsh("vol-dumpxml", name, "--pool", pool) for name in names]
    virsh("start", "ct1")
    found["domain"] += [virsh("dumpxml", "ct1")]
    bridge = virsh("net-info", "inner").split("Bridge:")[1].split()[0]
    found["interface"] += [virsh("iface-dumpxml", bridge)]
    assert all(found.values())
    for kind, texts in found.items():
        for number, text in enumerate(texts):
            validate(tmp_path / f"{kind}{number}.xml", text, kind)
    changed = tmp_path / "changed.xml"
    without = re.sub(r"<tpm.*?</tpm>", "", virsh("dumpxml", "vm1"), flags=re.DOTALL)
    changed.write_text(without)
    virsh("define", str(changed))
    assert " locked" in world.run("prlctl", "list", "-i", "vm1")
    changed.write_text(re.sub(r"<locked ?/>", "", without))
    virsh("define", str(changed))
    info = world.run("prlctl", "list", "-i", "vm1")
    assert ("tpm0" in info, "EFI secure boot: on" in info) == (False, True)
    assert (" locked" in info, " hugepages" in info) == (False, True)
    for name in ("ct1", "vm1"):
        world.run("prlctl", "delete", name, "--force")
    world.run("prlsrvctl", "net", "del", "inner")


def _all(virsh: Virsh, listing: str, dumping: str) -> list[str]:
    return [virsh(*dumping.split(), name) for name in virsh(*listing.split()).split()]


def validate(file: Path, text: str, schema: str) -> None:
    if schema == "capability":  # it does not know libvirt's own types vz and parallels
        text = text.replace('type="vz"', 'type="test"').replace('type="parallels"', 'type="test"')
    file.write_text(text)
    done = subprocess.run(
        ["virt-xml-validate", str(file), schema], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (text, done.stdout, done.stderr)
