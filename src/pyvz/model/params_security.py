"""Parameters of devices and privileges (config.md section 3.6)."""

from __future__ import annotations

from pyvz.model.grammar import YesNo
from pyvz.model.grammar_list import PCI, Devices, DevNodes, OnOffFlags
from pyvz.model.param import CONTAINERS, Option, Param, both, tools

# Ours: nesting lets a container make containers (containers-and-criu.md); lxcfs (its own figures in
# /proc) and ksm (its equal pages are merged) have a default in vz.conf.
FEATURE_NAMES = (
    "sysfs",
    "nfs",
    "sit",
    "ipip",
    "ppp",
    "ipgre",
    "bridge",
    "nfsd",
    "time",
    "nesting",
    "lxcfs",
    "ksm",
)
# capabilities(7), and the two names of the original that a stock kernel does not have.
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE VE_ADMIN FS_MASK"
)
CAPABILITY_NAMES = tuple(_CAPABILITIES.split())
FEATURES_GRAMMAR = OnOffFlags(FEATURE_NAMES)
CAPABILITY_GRAMMAR = OnOffFlags(CAPABILITY_NAMES, upper=True)
_NODES = DevNodes()
_DEVICES = Devices()

FEATURES = Param(
    "security.features",
    "FEATURES",
    FEATURES_GRAMMAR,
    None,
    "what the container may do beyond the usual",
    both(
        Option(
            "features",
            "NAME:on|off[,...]",
            "what it may do beyond the usual: " + " ".join(FEATURE_NAMES),
            merge=FEATURES_GRAMMAR.merge,
            repeat=True,
            kinds=CONTAINERS,
        )
    ),
    vzlist="features",
)
CAPABILITY = Param(
    "security.capability",
    "CAPABILITY",
    CAPABILITY_GRAMMAR,
    None,
    "capabilities of root inside, beyond or below the default",
    both(
        Option(
            "capability",
            "NAME:on|off[,...]",
            "capabilities of root inside (see capabilities(7))",
            merge=CAPABILITY_GRAMMAR.merge,
            repeat=True,
            kinds=CONTAINERS,
        )
    ),
)
PRIVILEGED = Param(
    "security.privileged",
    "PRIVILEGED",
    YesNo(),
    default=False,
    help="no user namespace: root inside is root of the node",
    options=both(
        Option(
            "privileged",
            "yes|no",
            "run without a user namespace: root inside is then root of the node (dangerous)",
            kinds=CONTAINERS,
        )
    ),
    local=True,
)
DEVNODES = Param(
    "devices.nodes",
    "DEVNODES",
    DevNodes(),
    (),
    "devices of the node, by name",
    both(
        Option(
            "devnodes",
            "DEVICE:r|w|rw|none",
            "let it use a device of the node (net/tun:rw, fuse:rw); none: no more",
            merge=_NODES.merge,
            repeat=True,
            kinds=CONTAINERS,
        )
    ),
    vzlist="devnodes",
)
DEVICES = Param(
    "devices.numbers",
    "DEVICES",
    Devices(),
    (),
    "devices by number",
    tools(
        vzctl=(
            Option(
                "devices",
                "b|c:MAJOR:MINOR|all:rwmq",
                "let it use a device by number; none: no more",
                merge=_DEVICES.merge,
                repeat=True,
            ),
        )
    ),
)
PCI_DEVICES = Param(
    "devices.pci",
    "PCI",
    PCI,
    (),
    "PCI devices that are given to it",
    tools(
        vzctl=(
            Option("pci_add", "[DOM:]BUS:SLOT.FUNC", "give it a PCI device", merge=PCI.add),
            Option("pci_del", "[DOM:]BUS:SLOT.FUNC", "take it away", merge=PCI.remove),
        )
    ),
    local=True,
)
