"""A machine with what the machines of developers rarely have: KVM, USB devices, an IOMMU.

All of it is emulated: the processor is AMD's with SVM, so that Debian's kernel has a working KVM
(slow, but the real module), and what is plugged in is real hardware to that kernel.  The steps of
guesthardware.py run virtual machines in it.
"""

from __future__ import annotations

from pathlib import Path

import guest
import image
import outer
import pytest

pytestmark = [pytest.mark.machine, pytest.mark.timeout(outer.DEADLINE + 600)]

# fmt: off
BOARD = (
    "-machine", "q35,kernel-irqchip=split", "-m", "3072",
    # Without 57 bits of addresses: what KVM gives its guests would have five levels, too.
    "-cpu", "max,la57=off",
    "-device", "intel-iommu,intremap=on",
    # Two controllers, so that one can go and come back while the other stays.
    "-device", "qemu-xhci,id=usb,addr=0x10", "-device", "qemu-xhci,id=gone,addr=0x11",
    "-blockdev", "null-co,node-name=stick,size=67108864,read-zeroes=on",
    "-device", "usb-storage,bus=usb.0,drive=stick,serial=STICK",
    "-device", "usb-kbd,bus=gone.0",
    "-blockdev", "null-co,node-name=fast,size=67108864,read-zeroes=on",
    "-device", "pcie-root-port,id=port1,chassis=1,addr=0x12",
    "-device", "nvme,bus=port1,drive=fast,serial=FAST",
    "-device", "pcie-root-port,id=port2,chassis=2,addr=0x13",
    "-device", "e1000e,bus=port2,mac=52:54:00:00:00:77",
)
# fmt: on


@pytest.fixture(scope="module", params=outer.SUITES)
def answers(request: pytest.FixtureRequest, tiny_drivers_iso: Path) -> outer.Answers:
    """What the machine said, by step."""
    base = image.base_image(request.param, hardware=True)
    cache = {"tiny.iso": tiny_drivers_iso}
    return outer.answers(base, cache, "hardware", BOARD, "intel_iommu=on")


@pytest.mark.parametrize("step", [function.__name__ for function in guest.KINDS["hardware"]])
def test_step(answers: outer.Answers, step: str) -> None:
    outer.check(answers, step)
