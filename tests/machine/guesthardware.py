"""Steps of the machine test about real hardware: KVM, USB devices, PCI devices; see guest.py.

The node is emulated, its KVM works, but an exit costs a millisecond or more: a virtual machine
boots in five minutes, and does so only twice here.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from guesttools import NAME, Failed, need, run, status, until

DISC = "/vz/template/cache/tiny.iso"
BOOT = 1500.0  # seconds
STICK, KEYBOARD = "46f4:0001", "0627:0001"  # QEMU's own: usb-storage, usb-kbd
# By what they say of themselves: a guest may have a tablet of its own, which has the same numbers.
PRODUCTS = {STICK: "QEMU USB HARDDRIVE", KEYBOARD: "QEMU USB Keyboard"}
VANISHING = "0000:00:11.0"  # the controller with the keyboard (test_hardware.py)
USB = Path("/sys/bus/usb/devices")

STEPS: list[Callable[[], None]] = []


def step(function: Callable[[], None]) -> Callable[[], None]:
    """Put a function into the list of steps."""
    STEPS.append(function)
    return function


def vm(command: str, *, code: int | None = 0) -> str:
    """Run a command inside the virtual machine."""
    return run("prlctl", "exec", NAME, command, code=code)


def made() -> None:
    """See to it that the virtual machine is there."""
    if NAME not in run("prlctl", "list", "-a", "-H", "-o", "name").split():
        run("prlctl", "create", NAME, "--vmtype", "vm", "-d", "debian")
        run("prlctl", "set", NAME, "--memsize", "256", "--cpus", "1")
        run("prlctl", "set", NAME, "--device-set", "cdrom0", "--image", DISC)
        run("prlctl", "set", NAME, "--device-add", "usb")  # a controller


def up() -> None:
    """See to it that it runs, too, and that its agent answers."""
    made()
    if status() != "running":
        run("prlctl", "start", NAME)
    until(lambda: "up" in run("prlctl", "exec", NAME, "echo up", code=None), "it is up", BOOT)


def down() -> None:
    """See to it that it is there and does not run."""
    made()
    run("prlctl", "stop", NAME)


def qemu() -> int:
    """The pid of the virtual machine."""
    file = next(Path("/run/pyvz/vm").glob("*/process.json"))
    return int(json.loads(file.read_text())["pid"])


def opened() -> list[str]:
    """What the virtual machine's process has open."""
    return [os.readlink(each) for each in Path(f"/proc/{qemu()}/fd").iterdir()]


def drivers(id_: str) -> set[str]:
    """Who of the node drives a USB device, "" for nobody."""
    for entry in USB.glob("[0-9]*"):
        if ":" not in entry.name and (entry / "idVendor").exists():
            words = [(entry / name).read_text().strip() for name in ("idVendor", "idProduct")]
            if ":".join(words) == id_:
                parts = [each / "driver" for each in USB.glob(f"{entry.name}:*")]
                return {each.resolve().name if each.exists() else "" for each in parts}
    raise Failed(f"the node has no {id_}")


def sees(id_: str) -> bool:
    """Whether the guest has a USB device."""
    return PRODUCTS[id_] in vm("cat /sys/bus/usb/devices/*/product", code=None)


def usb_disk() -> str:
    """The name of the guest's disk on USB, "" when it has none."""
    found = re.findall(r"/usb\d+/.*/(sd[a-z])\b", vm("ls -l /sys/block", code=None))
    return found[0] if found else ""


@step
def kvm_is_chosen() -> None:
    """The probe finds that KVM works."""
    run("modprobe", "kvm_amd")
    run("grep", "-m1", "-o", "-w", "svm", "/proc/cpuinfo")
    run("ls", "-l", "/dev/kvm")
    for _ in range(3):
        run("sh", "-c", "cd /opt/pyvz/src && ../.venv/bin/python -S -m pyvz.vm.kvmprobe")
    need(re.search(r"Virtual machines +kvm +hardware", run("prlsrvctl", "info")), "KVM is not used")


@step
def kvm_runs_a_machine() -> None:
    """A machine runs by KVM, as its own user, with the node's own processor."""
    up()
    words = Path(f"/proc/{qemu()}/cmdline").read_bytes().split(b"\0")
    need(words[words.index(b"-accel") + 1] == b"kvm", "it is emulated")
    need(any("kvm-vcpu" in each for each in opened()), "it has no processor of KVM's")
    need("\nUid:\t0\t" not in Path(f"/proc/{qemu()}/status").read_text(), "it is root")
    dmesg = vm("dmesg")
    need("Hypervisor detected: KVM" in dmesg, "the guest does not see KVM")
    name = re.findall("model name.*", Path("/proc/cpuinfo").read_text())[0]
    need(name in vm("cat /proc/cpuinfo"), "the guest has another processor")


@step
def kvm_takes_more() -> None:
    """CPUs and memory are plugged in."""
    up()
    run("prlctl", "set", NAME, "--cpus", "2")
    two = "[ -d /sys/devices/system/cpu/cpu1 ] && echo two"
    until(lambda: "two" in vm(two, code=None), "it has two")
    vm("echo 1 >/sys/devices/system/cpu/cpu1/online", code=None)
    until(lambda: vm("grep -c ^processor /proc/cpuinfo").strip() == "2", "both work")
    before = memory()
    run("prlctl", "set", NAME, "--memsize", "384")
    until(lambda: memory() > before + (100 << 10), "it has more memory")


def memory() -> int:
    """The guest's memory in KiB."""
    return int(vm("cat /proc/meminfo").split()[1])


@step
def kvm_is_suspended() -> None:
    """Suspended to disk and resumed, twice; a snapshot with memory brings it back."""
    up()
    vm("echo 1 >/run/marker")
    for _ in range(2):
        run("prlctl", "suspend", NAME)
        need(status() == "suspended", "it is not suspended")
        run("prlctl", "resume", NAME)
        need(vm("cat /run/marker").strip() == "1", "it is another")
    run("prlctl", "snapshot", NAME, "--name", "one")
    vm("echo 2 >/run/marker")
    guid = re.findall(r"\{[0-9a-f-]{36}\}", run("prlctl", "snapshot-list", NAME))[-1]
    run("prlctl", "snapshot-switch", NAME, "--id", guid)
    need(vm("cat /run/marker").strip() == "1", "its memory is not that of the snapshot")
    run("prlctl", "snapshot-delete", NAME, "--id", guid)


@step
def kvm_in_a_guest() -> None:
    """A processor by name may have virtualization, too."""
    run("prlctl", "create", "other", "--vmtype", "vm", "-d", "debian")
    run("prlctl", "set", "other", "--cpu-model", "EPYC", "--nested-virt", "on")
    run("prlctl", "set", "other", "--cpu-features", "+svm")  # required: read back from QEMU
    run("prlctl", "start", "other")
    run("prlctl", "stop", "other", "--kill")


@step
def usb_is_listed() -> None:
    """The node shows what it has, and gives nothing that it uses itself."""
    told = run("prlsrvctl", "info")
    need(STICK in told and KEYBOARD in told, "a device is not listed")
    need(drivers(STICK) == {"usb-storage"}, "the node does not drive the stick")
    run("prlctl", "set", "other", "--device-add", "usb", "--device", STICK)
    disk = next(Path("/sys/block").glob("sd*")).name
    held = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_EXCL)  # as a mount holds it
    try:
        said = run("prlctl", "start", "other", code=255)
    finally:
        os.close(held)
    need("is not free" in said and f"the disk {disk} is in use" in said, "it was given away")


def stick() -> None:
    """See to it that the virtual machine has the stick, and runs."""
    made()
    if STICK not in run("prlctl", "list", "-i", NAME):
        run("prlctl", "set", NAME, "--device-add", "usb", "--device", STICK)
    up()
    until(lambda: sees(STICK), "the guest sees it")


@step
def usb_disk_is_read() -> None:
    """A disk of the node on USB is plugged in, and the guest can read it."""
    stick()
    until(usb_disk, "the guest has its disk")
    need(vm(f"head -c 1048576 /dev/{usb_disk()} | wc -c").strip() == "1048576", "it is unreadable")
    need(drivers(STICK) == {"usbfs"}, "the node still drives it")
    need(any(each.startswith("/dev/bus/usb/") for each in opened()), "QEMU does not have it open")


@step
def usb_of_two_machines() -> None:
    """Nobody else gets it meanwhile."""
    stick()
    said = run("prlctl", "start", "other", code=255)
    need(f"in use by {NAME}" in said, "it does not say who has it")


@step
def usb_plugged() -> None:
    """Plugged in and pulled out while it runs; the node has it again then."""
    stick()
    run("prlctl", "set", NAME, "--device-add", "usb", "--device", KEYBOARD)
    until(lambda: sees(KEYBOARD), "the guest sees it")
    need(drivers(KEYBOARD) == {"usbfs"}, "the node still drives it")
    said = run("prlctl", "set", NAME, "--device-add", "usb", "--device", KEYBOARD, code=1)
    need("is usb2 already" in said, "the same one twice")
    run("prlctl", "set", NAME, "--device-del", "usb2")
    until(lambda: not sees(KEYBOARD), "the guest does not see it any more")
    need(drivers(KEYBOARD) == {"usbhid"}, "the node did not get it back")
    run("prlctl", "set", NAME, "--device-add", "usb", "--device", KEYBOARD)
    until(lambda: sees(KEYBOARD), "the guest sees it again")


@step
def usb_vanishes() -> None:
    """Pulled out of the node: the guest goes on without; it can be plugged in again."""
    up()
    until(lambda: sees(KEYBOARD), "the guest sees it")
    Path("/sys/bus/pci/drivers/xhci_hcd/unbind").write_text(VANISHING)

    def gone() -> bool:  # QEMU finds out when the guest uses it
        vm("for each in /dev/input/event*; do timeout 1 cat $each >/dev/null; done", code=None)
        return not sees(KEYBOARD)

    until(gone, "the guest does not see it any more")
    need(status() == "running", "it does not run any more")
    Path("/sys/bus/pci/drivers/xhci_hcd/bind").write_text(VANISHING)
    until(lambda: KEYBOARD in run("prlsrvctl", "info"), "the node has it again")
    run("prlctl", "set", NAME, "--device-del", "usb2")
    run("prlctl", "set", NAME, "--device-add", "usb", "--device", KEYBOARD)
    until(lambda: sees(KEYBOARD), "the guest sees it again")
    run("prlctl", "set", NAME, "--device-del", "usb2")


@step
def usb_and_states() -> None:
    """A suspended machine has no device; it has it again afterwards, and after a snapshot."""
    stick()
    vm("echo 1 >/run/marker")
    run("prlctl", "snapshot", NAME, "--name", "two")
    until(lambda: sees(STICK), "the guest has it after a snapshot")
    run("prlctl", "suspend", NAME)
    need(drivers(STICK) == {"usb-storage"}, "the node did not get it back")
    run("prlctl", "resume", NAME)
    need(vm("cat /run/marker").strip() == "1", "it is another")
    until(lambda: sees(STICK), "the guest sees it again")
    until(usb_disk, "the guest has its disk again")


@step
def usb_after_a_kill() -> None:
    """When QEMU is killed, the node has the device again."""
    stick()
    os.kill(qemu(), signal.SIGKILL)
    until(lambda: status() == "stopped", "its end is seen")
    until(lambda: drivers(STICK) == {"usb-storage"}, "the node has it again")
    run("prlctl", "delete", "other")


def address(class_: str) -> str:
    """The address of the node's one PCI device of a class."""
    for entry in sorted(Path("/sys/bus/pci/devices").iterdir()):
        if (entry / "class").read_text().startswith(class_):
            return entry.name
    raise Failed(f"no PCI device of class {class_}")


DISK, CARD = "0x0108", "0x0200"


def driver(class_: str) -> str:
    """Who of the node drives it, "" for nobody."""
    link = Path("/sys/bus/pci/devices") / address(class_) / "driver"
    return link.resolve().name if link.exists() else ""


@step
def pci_is_refused() -> None:
    """What cannot be given away is not: bridges, what the node uses."""
    down()
    told = run("prlsrvctl", "info")
    need(address(DISK) in told and address(CARD) in told, "a device is not listed")
    port = address("0x0604")
    said = run("prlctl", "set", NAME, "--device-add", "pci", "--device", port, code=255)
    need("bridge" in said, "a bridge was taken")
    run("prlctl", "set", NAME, "--device-add", "pci", "--device", address(CARD))
    link = next(Path(f"/sys/bus/pci/devices/{address(CARD)}/net").iterdir()).name
    run("ip", "link", "set", link, "up")
    said = run("prlctl", "start", NAME, code=255)
    need("in use by this node" in said and f"{link} is up" in said, "the node lost its card")
    run("ip", "link", "set", link, "down")
    need(driver(CARD) == "e1000e", "the driver has gone")


@step
def pci_at_the_start() -> None:
    """A guest drives a disk and a card of the node; QEMU may open their groups, nothing else."""
    run("prlctl", "set", NAME, "--device-add", "pci", "--device", address(DISK))
    stick()  # which it has from its start on, too
    need(driver(DISK) == driver(CARD) == "vfio-pci", "the node still drives one")
    until(lambda: "nvme0n1" in vm("ls /sys/block"), "the guest has the disk")
    need(vm("head -c 1048576 /dev/nvme0n1 | wc -c").strip() == "1048576", "it cannot be read")
    until(lambda: "52:54:00:00:00:77" in vm("ip link"), "the guest has the card")
    vm("dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=4; sync")
    files = [each for each in opened() if each.startswith("/dev/vfio/")]
    need(len(files) >= 3, f"QEMU has open {files}")
    for verb in (["suspend", NAME], ["snapshot", NAME]):
        need("PCI device" in run("prlctl", *verb, code=255), "it was not refused")
    need(vm("echo on").strip() == "on", "it does not go on")


@step
def pci_is_given_back() -> None:
    """The node's drivers have the devices again: after a stop, after a kill."""
    up()
    run("prlctl", "stop", NAME)
    need((driver(DISK), driver(CARD)) == ("nvme", "e1000e"), "one was not given back")
    until(lambda: Path("/sys/block/nvme0n1").exists(), "the node has its disk again")
    run("prlctl", "start", NAME)
    need(driver(DISK) == "vfio-pci", "it was not taken again")
    os.kill(qemu(), signal.SIGKILL)
    until(lambda: status() == "stopped", "its end is seen")
    until(lambda: (driver(DISK), driver(CARD)) == ("nvme", "e1000e"), "they are given back")
    until(lambda: not list(Path("/run/pyvz/pci").glob("*")), "no record is left")
    for name in ("pci1", "pci2"):
        run("prlctl", "set", NAME, "--device-del", name)
