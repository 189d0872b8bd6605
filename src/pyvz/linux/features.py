"""What this kernel and machine can do, each found by trying it, with the reason.

`probe` takes some 50 ms, changes nothing on the node and leaves nothing behind; its answer is
kept in the node's run directory for as long as the machine is up.  What depends on a place
(idmapped mounts, reflinks) is asked for the file systems of given directories, and can be asked
for any other by `idmapped_at` and `reflink_at`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed, StorageError, Unsupported, VZError
from pyvz.linux import cgroup, deviceprogram, run, syscall
from pyvz.linux.file import write_atomic
from pyvz.linux.mount import holding_mount
from pyvz.linux.namespace import detached_tree, open_user, write_id_maps
from pyvz.linux.process import boot_id

_CACHE = "features.json"
_FORMAT = 1
_PATIENCE = 60.0  # seconds for milliseconds: what is found is believed until the next boot
_PROBE_IDS = 1 << 19  # ids of the user namespace that the probe maps, for a moment
_FICLONE = 0x40049409  # linux/fs.h


class Feature(NamedTuple):
    """Whether the node has it (or which), and how we know or why not."""

    value: bool | str
    reason: str

    def __bool__(self) -> bool:
        return bool(self.value)


class Features(NamedTuple):
    """What the node can do; see `_ROWS` for what each stands for.

    idmapped: file system type -> whether its mounts can be idmapped, for those that were asked.
    """

    kernel: Feature
    cgroup: Feature
    userns: Feature
    timens: Feature
    pidfd_info: Feature
    seccomp: Feature
    device_program: Feature
    swap_accounting: Feature
    psi: Feature
    ksm: Feature
    userfaultfd: Feature
    soft_dirty: Feature
    overlay: Feature
    reflink: Feature
    idmapped: dict[str, Feature]

    def can_idmap(self, fstype: str) -> bool:
        """Whether file systems of that type are known to take idmapped mounts."""
        return bool(self.idmapped.get(fstype))

    def as_rows(self) -> list[tuple[str, str, str]]:
        """Return (what, value, reason) for people, as `prlsrvctl info` prints them."""
        rows = [
            (label, _word(getattr(self, key)), getattr(self, key).reason) for key, label in _ROWS
        ]
        for fstype, feature in sorted(self.idmapped.items()):
            rows.append((f"Idmapped mounts on {fstype}", _word(feature), feature.reason))
        return rows


_ROWS = (
    ("kernel", "Kernel"),
    ("cgroup", "Control groups"),
    ("userns", "User namespaces"),
    ("timens", "Time namespaces"),
    ("pidfd_info", "Exit status by pidfd"),
    ("seccomp", "Seccomp filters"),
    ("device_program", "Device rules by eBPF"),
    ("swap_accounting", "Swap limits"),
    ("psi", "Pressure stall information"),
    ("ksm", "Same-page merging per process"),
    ("userfaultfd", "Userfaultfd"),
    ("soft_dirty", "Soft-dirty page tracking"),
    ("overlay", "Overlay file system"),
    ("reflink", "Reflinks in the container area"),
)


def _word(feature: Feature) -> str:
    if isinstance(feature.value, str):
        return feature.value
    return "yes" if feature.value else "no"


def probe(run_directory: Path, places: Sequence[Path] = (), *, fresh: bool = False) -> Features:
    """Return the node's features, from `run_directory`/features.json when it is of this boot.

    places: directories of the node (the container area first) whose file systems are asked for
    reflinks and idmapped mounts; "/" is always asked.  fresh: try everything anew.
    """
    asked = [*places, Path("/")]
    key = [_FORMAT, boot_id(), os.uname().release, [os.fspath(place) for place in asked]]
    cache = run_directory / _CACHE
    if not fresh:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _load(cache.read_text(encoding="utf-8"), key)
    found = _probe(asked)
    os.makedirs(run_directory, exist_ok=True)
    write_atomic(cache, json.dumps({"key": key, "features": found._asdict()}), 0o644)
    return found


def _load(text: str, key: list[object]) -> Features:
    stored = json.loads(text)
    if stored["key"] != key:
        raise ValueError("of another boot, kernel or node")
    values = stored["features"]
    idmapped = {name: Feature(*pair) for name, pair in values.pop("idmapped").items()}
    return Features(**{name: Feature(*pair) for name, pair in values.items()}, idmapped=idmapped)


def _probe(places: Sequence[Path]) -> Features:
    existing = [_existing(place) for place in places]
    userns = Feature(value=False, reason="not tried")
    idmapped: dict[str, Feature] = {}
    try:
        with _user_namespace() as namespace:
            userns = Feature(value=True, reason="made one")
            for place in existing:
                fstype = holding_mount(place).fstype
                idmapped.setdefault(fstype, _idmapped(place, namespace))
    except (OSError, VZError) as error:
        userns = Feature(value=False, reason=_why(error))
    return Features(
        kernel=Feature(os.uname().release, os.uname().version),
        cgroup=_guarded(_cgroup),
        userns=userns,
        timens=_file("/proc/self/ns/time", "Linux 5.6 with CONFIG_TIME_NS"),
        pidfd_info=_guarded(_pidfd_info),
        seccomp=_guarded(_seccomp),
        device_program=_guarded(_device_program),
        swap_accounting=_guarded(_swap_accounting),
        psi=_guarded(_psi),
        ksm=_guarded(_ksm),
        userfaultfd=_file("/proc/sys/vm/unprivileged_userfaultfd", "CONFIG_USERFAULTFD"),
        soft_dirty=_guarded(_soft_dirty),
        overlay=_guarded(_overlay),
        reflink=_guarded(lambda: reflink_at(existing[0])),
        idmapped=idmapped,
    )


def _guarded(check: Callable[[], Feature]) -> Feature:
    try:
        return check()
    except (OSError, VZError) as error:
        return Feature(value=False, reason=_why(error))


def _why(error: Exception) -> str:
    if isinstance(error, VZError):
        return " ".join(filter(None, (error.message, error.details))).replace("\n", "; ")
    return str(error)


def _existing(place: Path) -> Path:
    while not place.exists():
        place = place.parent
    return place


def _file(path: str, needs: str) -> Feature:
    if os.path.exists(path):
        return Feature(value=True, reason=f"{path} is there")
    return Feature(value=False, reason=f"{path} is not there (it needs {needs})")


def _cgroup() -> Feature:
    version = cgroup.detect("pyvz-probe").version
    if version == 2:
        return Feature("v2", "all controllers in one tree")
    return Feature("v1", "v1 controllers; containers see the cgroup2 tree beside them")


@contextlib.contextmanager
def _user_namespace() -> Iterator[int]:
    """Yield a user namespace with a map, kept by a program that lives as long."""
    with run.spawn(["unshare", "--user", "cat"], input_pipe=True) as holder:
        _await_other_namespace(holder)
        write_id_maps(holder.pid, _PROBE_IDS, 65536)
        namespace = open_user(holder.pid)
        try:
            yield namespace
        finally:
            os.close(namespace)


def _await_other_namespace(holder: run.Process) -> None:
    own = os.readlink("/proc/self/ns/user")
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if holder.poll() is not None:
            words = holder.stderr.read().decode(errors="replace") if holder.stderr else ""
            raise Unsupported("no user namespace can be made", details=words.strip())
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{holder.pid}/ns/user") != own:
                return
        time.sleep(0.001)
    raise Unsupported(f"no user namespace appeared within {_PATIENCE:.0f} s")


def idmapped_at(place: Path) -> Feature:
    """Whether the file system of PLACE takes idmapped mounts (tried on a detached copy)."""
    try:
        with _user_namespace() as namespace:
            return _idmapped(place, namespace)
    except (OSError, VZError) as error:
        return Feature(value=False, reason=_why(error))


def _idmapped(place: Path, namespace: int) -> Feature:
    try:
        os.close(detached_tree(os.fspath(place), userns=namespace, recursive=False))
    except OSError as error:
        why = "the file system does not support it" if error.errno == errno.EINVAL else _why(error)
        return Feature(value=False, reason=f"{place}: {why}")
    return Feature(value=True, reason=f"tried on {place}")


def reflink_at(place: Path) -> Feature:
    """Whether files in PLACE can share blocks (tried with two files that have no name)."""
    fstype = holding_mount(place).fstype
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    files = []
    try:
        for _ in range(2):
            files.append(os.open(place, flags, 0o600))
        os.write(files[0], bytes(4096))
        fcntl.ioctl(files[1], _FICLONE, files[0])
    except OSError as error:
        return Feature(value=False, reason=f"{place} ({fstype}): {os.strerror(error.errno or 0)}")
    finally:
        for fd in files:
            os.close(fd)
    return Feature(value=True, reason=f"tried on {place} ({fstype})")


def _pidfd_info() -> Feature:
    process = run.start(["true"])
    pidfd = os.pidfd_open(process.pid)
    try:
        select.select([pidfd], [], [], _PATIENCE)
        process.wait(_PATIENCE)
        if syscall.pidfd_info(pidfd).exit_status == 0:
            return Feature(value=True, reason="read the status of a process already reaped")
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
            reason = "the kernel does not keep it (Linux 6.15 does)"
            return Feature(value=False, reason=reason)
        raise
    finally:
        os.close(pidfd)
    return Feature(value=False, reason="the kernel tells no exit status (Linux 6.15 does)")


def _seccomp() -> Feature:
    with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
        actions = file.read().split()
    return Feature(value="errno" in actions, reason="actions: " + " ".join(actions))


def _device_program() -> Feature:
    os.close(deviceprogram.load(deviceprogram.assemble(())))
    return Feature(value=True, reason="the kernel took a program")


def _swap_accounting() -> Feature:
    # memory.swap.max is not in the root of a v2 tree, but CONFIG_SWAP's /proc/swaps tells.
    if cgroup.detect("pyvz-probe").version == 1:
        return _file("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "swapaccount=1")
    return _file("/proc/swaps", "CONFIG_SWAP")


def _psi() -> Feature:
    with open("/proc/pressure/memory", encoding="ascii") as file:
        file.read()
    return Feature(value=True, reason="/proc/pressure can be read")


def _ksm() -> Feature:
    if not os.path.exists("/sys/kernel/mm/ksm/run"):
        return Feature(value=False, reason="the kernel has no CONFIG_KSM")
    try:
        syscall.prctl(syscall.PR_GET_MEMORY_MERGE, 0, 0, 0, 0)
    except OSError as error:
        return Feature(value=False, reason=f"PR_SET_MEMORY_MERGE (Linux 6.4): {_why(error)}")
    return Feature(value=True, reason="PR_SET_MEMORY_MERGE works")


def _soft_dirty() -> Feature:
    # A page that was just written has bit 55 set in /proc/PID/pagemap where the kernel tracks it
    # (Documentation/admin-guide/mm/soft-dirty.rst); clearing all bits would disturb this process.
    buffer = syscall.data_buffer(b"x" * (2 * mmap.PAGESIZE))
    page = (syscall.address_of(buffer) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        (entry,) = struct.unpack("=Q", os.pread(fd, 8, page * 8))
    finally:
        os.close(fd)
    if entry >> 55 & 1:
        return Feature(value=True, reason="a page just written is marked")
    return Feature(value=False, reason="the kernel has no CONFIG_MEM_SOFT_DIRTY")


def _overlay() -> Feature:
    with open("/proc/filesystems", encoding="ascii") as file:
        if "overlay" in file.read().split():
            return Feature(value=True, reason="in /proc/filesystems")
    try:
        run.run(["modprobe", "--dry-run", "--quiet", "overlay"], timeout=_PATIENCE)
    except (CommandFailed, StorageError):
        return Feature(value=False, reason="neither in the kernel nor a module of it")
    return Feature(value=True, reason="a module of this kernel")
