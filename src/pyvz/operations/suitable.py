"""Whether an environment that another node offers can live here; nothing is changed.

What is missing is told before anything has begun.  `ignore` names checks that the administrator
has switched off (vzmigrate -f): cpu_check, disk_space, technologies, rate, bindmount, all.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvz.errors import (
    AddressInUse,
    NodesDiffer,
    NoSpace,
    NotEnoughResources,
    Unsupported,
    VZError,
)
from pyvz.migration.offer import IMAGE, STREAM, TOKEN, Offer
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Kind
from pyvz.network import plan as network_plan
from pyvz.network.address import Reservations
from pyvz.operations import home, machinecreate, machineoffer, network, pool, provision
from pyvz.operations.node import Node
from pyvz.storage import base as storage

_RESERVE: Final = 64 << 20  # bytes that stay free on the disk
# Features of the machine and of the kernel that no program can use.
_HARMLESS: Final = """
    arat aperfmperf acpi art cpuid_fault dts dtherm ept ept_ad epb extd_apicid flexpriority
    hwp hwp_act_window hwp_epp hwp_notify hwp_pkg_req ibpb ibrs ibrs_enhanced ida intel_pt
    invpcid_single mba cqm cqm_llc cqm_mbm_local cqm_mbm_total cqm_occup_llc cat_l2 cat_l3
    monitor mtrr pat pge pln pts pti rdt_a smca smx ssbd stibp tpr_shadow tsc_known_freq vmx svm
    vnmi vpid hypervisor lahf_lm nonstop_tsc constant_tsc tsc_reliable rep_good nopl
    tsc_adjust tsc_deadline_timer x2apic xtopology xtpr dca est tm tm2 ds_cpl dtes64 pebs bts
    arch_perfmon pdcm perfctr_core perfctr_llc perfctr_nb overflow_recov succor mce mca
    md_clear flush_l1d arch_capabilities pconfig split_lock_detect bus_lock_detect
"""
_CPU_INFO: Final = Path("/proc/cpuinfo")


def check(node: Node, offer: Offer, place: Path, *, shared: bool) -> None:
    """Raise the reason why not: NodesDiffer, NoSpace, NotEnoughResources, AddressInUse, ..."""
    values = ConfFile.parse(offer.conf).values()
    config = Config.parse(values, source=f"ve.conf of {offer.name}", lenient=True)
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("technologies", lambda: _machine(offer)),
        ("technologies", lambda: _kernel(offer)),
        ("cpu_check", lambda: _cpu(offer)),
        ("technologies", lambda: None if shared else _storage(offer, place)),
        ("technologies", lambda: _kind(node, offer)),
        ("disk_space", lambda: None if shared else _space(offer, place)),
        ("memory", lambda: _memory(offer)),
        ("technologies", lambda: _networks(node, config)),
        ("bindmount", lambda: _binds(config)),
    )
    for word, step in checks:
        if not {"all", word} & set(offer.ignore):
            step()
    _addresses(node, offer, config)


def cpu_flags() -> tuple[str, ...]:
    """Return the features of the CPU that programs may use, as the kernel names them."""
    for line in _CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return tuple(sorted(value.split()))
    return ()


def _machine(offer: Offer) -> None:
    if offer.machine != platform.machine():
        raise NodesDiffer(
            f"{offer.name} is of a {offer.machine} machine, this one is {platform.machine()}"
        )


def _kernel(offer: Offer) -> None:
    """What a program has found in its kernel, it goes on using: an older one may lack it."""
    here, there = _release(os.uname().release), _release(offer.kernel)
    if offer.live and offer.kind == Kind.CT and here < there:
        raise NodesDiffer(
            f"The kernel of this node ({os.uname().release}) is older than that of the other one "
            f"({offer.kernel}), under which {offer.name} runs",
            hint="Migrate it stopped (without --online), or skip this check: -f technologies.",
        )


def _release(text: str) -> tuple[int, ...]:
    """Return (major, minor) of a kernel, () when it cannot be told."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


def _cpu(offer: Offer) -> None:
    """A program that runs has asked once what the CPU can do, and does not ask again."""
    emulated = offer.kind == Kind.VM and offer.checkpoint.get("accelerator") == "tcg"
    if not offer.live or emulated:
        return
    missing = sorted(set(offer.cpu) - set(cpu_flags()) - set(_HARMLESS.split()))
    if missing:
        raise NodesDiffer(
            f"The CPU of this node lacks features that {offer.name} may be using",
            details=" ".join(missing[:40]),
            hint="Migrate it stopped (without --online), or skip this check: -f cpu_check.",
        )


def _kind(node: Node, offer: Offer) -> None:
    if offer.kind == Kind.VM:
        machineoffer.check(node, offer)


def _storage(offer: Offer, place: Path) -> None:
    parent = _existing(place)
    for disk in offer.disks:
        if not disk.driver:  # what is beside the disks
            continue
        driver = storage.load(disk.driver)
        able = driver.capabilities(parent)
        known = {IMAGE: able.restore, STREAM: able.streams}
        if not known.get(disk.form, True):
            raise NodesDiffer(f"Disks of layout {disk.driver} cannot be received by this node")
        if disk.form == IMAGE and (why := storage.why_no_images()):
            raise NodesDiffer(f"This node cannot have disk images: {why}")
        if disk.size is not None and disk.form != IMAGE and not able.quota:
            raise NodesDiffer(
                f"The disk of {offer.name} has a size limit, which layout {disk.driver} does "
                "not have on this node"
            )
        try:
            driver.prepare(parent, {})
        except Unsupported as error:
            raise NodesDiffer(error.message, details=error.details) from error


def _space(offer: Offer, place: Path) -> None:
    parent = _existing(place)
    free = os.statvfs(parent)
    available = free.f_bavail * free.f_frsize
    needed = sum(disk.used for disk in offer.disks) + _RESERVE
    if needed > available:
        raise NoSpace(
            f"There is not enough space in {parent} for {offer.name}",
            details=f"It needs {needed >> 20} MiB, {available >> 20} MiB are free.",
        )


def _memory(offer: Offer) -> None:
    if not offer.running:
        return
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            available = int(value.split()[0]) << 10
            if available < offer.memory:
                raise NotEnoughResources(
                    f"There is not enough memory for {offer.name}",
                    details=f"It uses {offer.memory >> 20} MiB, "
                    f"{available >> 20} MiB are available.",
                )


def _networks(node: Node, config: Config) -> None:
    known = network.networks(node)
    for netif in network_plan.netifs(config):
        if netif.network and netif.network not in known:
            raise NodesDiffer(
                f"This node has no network '{netif.network}', into which the interface "
                f"{netif.ifname} is plugged",
                hint=f"Make it there first: prlsrvctl net add {netif.network}",
            )


def _addresses(node: Node, offer: Offer, config: Config) -> None:
    taken = Reservations(node.paths).all()
    for address in network_plan.reserved(config):
        owner = taken.get(address, offer.uuid)
        if owner != offer.uuid:
            raise AddressInUse(f"The address {address} is in use by the container {owner}")


def _binds(config: Config) -> None:
    for bind in config.disk.bindmounts:
        source = bind.source
        if source and not Path(source).exists():
            raise NodesDiffer(f"The directory {source}, which is mounted inside, is not there")


def new_home(node: Node, offer: Offer, private: str | None) -> Path:
    """Return where the home of an offered environment goes; raises PrivateExists, BadValue."""
    if private is None and offer.kind == Kind.VM:
        private = home.spelled(node, machinecreate.parent_of(node)) + "/$VEID"
    private = private or pool.private_for(node, offer.driver)
    place = provision.place(node, private, offer.uuid)
    home.check_place(node, place)
    return place


def is_shared(node: Node, offer: Offer) -> Path | None:
    """Return the home when it is on storage that this node has, too."""
    if offer.shared is False or not offer.token:
        return None
    place = Path(os.path.normpath(f"{node.paths.root}/{offer.place}"))
    if not place.is_relative_to(node.paths.vz):
        return None
    try:
        found = (place / TOKEN).read_text()
    except (OSError, UnicodeDecodeError, VZError):
        return None
    return place if found == offer.token else None


def check_shared(offer: Offer, *, clone: bool) -> None:
    """Raise Unsupported for what cannot be done where both nodes see the same files."""
    if clone:
        raise Unsupported("A copy on shared storage is made with: prlctl clone")
    # The other node mounts the disks while they are mounted here: fine for files, not for the
    # blocks of one file system.
    if offer.live and any(disk.form == IMAGE for disk in offer.disks):
        raise Unsupported(
            f"{offer.name} has disk images on storage that both nodes share: it cannot move "
            "there while it runs",
            hint="Have it stopped for the move: vzmigrate without --online, prlctl migrate "
            "--offline.",
        )


def _existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())
