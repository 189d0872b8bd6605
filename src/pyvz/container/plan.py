"""From a specification to the list of steps of a start: pure, tested with golden data.

The order is the one proven in reference/containers-and-criu.md, section 3.  The steps run after
pivot_root, so every path is inside the container.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyvz.container import capability, devices
from pyvz.container.operation import (
    Attach,
    CgroupNamespace,
    Console,
    Directory,
    EmptyFile,
    Figure,
    Hostname,
    Loopback,
    Mask,
    Mount,
    Node,
    NodeBind,
    Operation,
    ReadOnly,
    Seal,
    StartPlan,
    Symlink,
)
from pyvz.container.spec import ContainerSpec
from pyvz.linux import syscall

_QUIET = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
_DATA = syscall.MS_NOSUID | syscall.MS_NODEV
# Empty things of our own that masks are bound from.  Not /dev/null: in a user namespace that is a
# mount of the node, and CRIU would have to be told of every mask made of it.
EMPTY_FILE = "/dev/.empty/file"
EMPTY_DIRECTORY = "/dev/.empty/directory"

MASKED = (
    *("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg"),
    *("/proc/latency_stats", "/proc/acpi", "/proc/scsi", "/proc/asound"),
    *("/sys/firmware", "/sys/kernel/debug", "/sys/devices/virtual/powercap"),
    # The node's disks and the loop devices of all containers, with the paths of their images.
    *("/sys/block", "/sys/class/block", "/sys/dev/block", "/sys/devices/virtual/block"),
    *("/proc/partitions", "/proc/diskstats"),
)
READ_ONLY = (
    # The network's part belongs to the container's network namespace.
    ReadOnly("/proc/sys", ("/proc/sys/net",)),
    ReadOnly("/proc/sysrq-trigger"),
    ReadOnly("/proc/irq"),
    ReadOnly("/proc/bus"),
    ReadOnly("/proc/fs"),
)
_RLIMIT_CORE, _RLIMIT_NOFILE = 4, 7
_RLIMITS = ((_RLIMIT_NOFILE, 1024, 1048576), (_RLIMIT_CORE, 0, 2**63 - 1))


def plan(spec: ContainerSpec, figures: Sequence[str] = ()) -> StartPlan:
    """What the stage has to do for this container.

    figures: the files of lxcfs to show, whose mounts follow those of the binds.
    """
    return StartPlan(
        namespaces=namespaces(spec),
        operations=(
            *_kernel_views(spec),
            *_devices(spec),
            CgroupNamespace(),
            Mount("/sys/fs/cgroup", "cgroup2", _QUIET, optional=True),
            Mount("/run", "tmpfs", _DATA, "mode=755", optional=True),
            *(Attach(number, bind.target) for number, bind in enumerate(spec.binds)),
            *_protections(spec),
            *_figures(spec, figures),
            Seal("/sys"),
            Hostname(spec.hostname),
            *((Loopback(),) if spec.network_namespace else ()),
            Console("/dev/console"),
        ),
        argv=spec.argv,
        env=spec.env,
        capabilities=capability.mask(spec.caps),
        rlimits=_RLIMITS,
        merge=spec.merge,
    )


def namespaces(spec: ContainerSpec) -> int:
    """The CLONE_NEW* flags; the cgroup namespace comes later, inside the container's cgroup."""
    flags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
    if spec.ids is not None:
        flags |= syscall.CLONE_NEWUSER
    if spec.network_namespace:
        flags |= syscall.CLONE_NEWNET
    if spec.time_namespace:
        flags |= syscall.CLONE_NEWTIME
    return flags


def _kernel_views(spec: ContainerSpec) -> list[Operation]:
    steps: list[Operation] = [Directory("/proc", 0o555), Mount("/proc", "proc", _QUIET)]
    steps.append(Directory("/sys", 0o555))
    if spec.network_namespace:  # sysfs shows a network namespace, whose owner alone may mount it
        steps.append(Mount("/sys", "sysfs", _QUIET))
    else:
        steps.append(NodeBind("/sys", "/sys"))
    return steps


def _devices(spec: ContainerSpec) -> list[Operation]:
    nodes = (*devices.STANDARD, *spec.device_nodes)
    steps: list[Operation] = [
        Directory("/dev"),
        Mount("/dev", "tmpfs", syscall.MS_NOSUID, "mode=755,size=1m"),
        Directory("/dev/.empty"),
        EmptyFile(EMPTY_FILE),
        Directory(EMPTY_DIRECTORY, 0o555),
        *(Directory(path) for path in _parents(nodes)),
        *(_device(spec, node) for node in nodes),
        Directory("/dev/pts"),
        Mount(
            "/dev/pts",
            "devpts",
            syscall.MS_NOSUID | syscall.MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=620,gid=5",
        ),
        Directory("/dev/shm"),  # noqa: S108  # a mount point, not a temporary file
        Mount("/dev/shm", "tmpfs", _DATA, "mode=1777"),  # noqa: S108
        Directory("/dev/mqueue"),
        Mount("/dev/mqueue", "mqueue", _QUIET),
        Symlink("/dev/ptmx", "pts/ptmx"),
        Symlink("/dev/fd", "/proc/self/fd"),
        Symlink("/dev/stdin", "/proc/self/fd/0"),
        Symlink("/dev/stdout", "/proc/self/fd/1"),
        Symlink("/dev/stderr", "/proc/self/fd/2"),
    ]
    return steps


def _device(spec: ContainerSpec, node: devices.DeviceNode) -> Operation:
    if spec.ids is not None:  # mknod of devices is refused in a user namespace
        return NodeBind(node.path, node.source or node.path)
    return Node(node.path, node.kind, node.major, node.minor, node.mode)


def _parents(nodes: tuple[devices.DeviceNode, ...]) -> list[str]:
    """Directories between /dev and the nodes, outermost first."""
    found: dict[str, None] = {}
    for node in nodes:
        parts = node.path.split("/")[2:-1]
        for depth in range(1, len(parts) + 1):
            found["/dev/" + "/".join(parts[:depth])] = None
    return list(found)


def _figures(spec: ContainerSpec, figures: Sequence[str]) -> list[Operation]:
    steps: list[Operation] = []
    if figures and spec.nesting and spec.ids is not None:
        # As in _protections: a container inside may mount /proc and /sys only while whole ones can
        # be seen, which those with files of lxcfs on them are not any more.
        steps = [
            *(Directory(path) for path in ("/dev/.whole", "/dev/.whole/proc", "/dev/.whole/sys")),
            Mount("/dev/.whole/proc", "proc", _QUIET),
            *((Mount("/dev/.whole/sys", "sysfs", _QUIET),) if spec.network_namespace else ()),
        ]
    first = len(spec.binds)
    return steps + [Figure(first + number, target) for number, target in enumerate(figures)]


def _protections(spec: ContainerSpec) -> list[Operation]:
    """Read-only and masked parts of /proc and /sys.

    With nesting in a user namespace there are none: a new /proc may be mounted in there only
    while a fully visible one exists (fs/namespace.c, mount_too_revealing), and everything masked
    here belongs to the node's root, which nobody inside is.
    """
    if spec.nesting and spec.ids is not None:
        return []
    return [*READ_ONLY, *(Mask(path, EMPTY_FILE, EMPTY_DIRECTORY) for path in MASKED)]
