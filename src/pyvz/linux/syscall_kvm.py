"""KVM by its system calls: does the processor run 64-bit guest code, and how fast?

/dev/kvm that opens, and KVM_CREATE_VCPU that succeeds, prove nothing: KVM under some hypervisors
(KVM_PVM) emulates every instruction of an ordinary guest.  Source: linux/kvm.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time

_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_RUN = 0xAE80
_GET_SREGS, _SET_SREGS = 0x8138AE83, 0x4138AE84
_SET_REGS = 0x4090AE82
_SET_CPUID2 = 0x4008AE90
_EXIT_IO, _EXIT_HLT = 2, 5
_LOOPS = 100_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]


def seconds_of_loop() -> float:
    """Run a loop of 100000 rounds in 64-bit mode with paging and return how long it took.

    Counted is the time of this thread on a processor, in the guest or in the kernel for it.
    Raises OSError when there is no KVM, or when the guest does not do what it must.
    """
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    # The address overflows fcntl.ioctl's int.
    _libc.ioctl(machine, _SET_TSS_ADDR, 0xFFFBD000)
    memory = _guest_memory()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("IIQQQ", 0, 0, 0, len(memory), address)
    fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, region)
    cpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    shared = mmap.mmap(cpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    _features(kvm, cpu)
    _long_mode(cpu)
    began = time.thread_time()
    for wanted in (_EXIT_IO, _EXIT_HLT):
        fcntl.ioctl(cpu, _RUN, 0)
        reason = struct.unpack_from("I", shared, 8)[0]
        if reason != wanted:
            raise OSError(5, f"KVM: the guest ended with {reason}, not {wanted}")
    return time.thread_time() - began


def _guest_memory() -> mmap.mmap:
    memory = mmap.mmap(-1, 0x10000)
    # mov rcx, LOOPS; 1: dec rcx; jnz 1b; mov al, 0x41; out 0x80, al; hlt
    code = b"\x48\xc7\xc1" + struct.pack("<I", _LOOPS) + b"\x48\xff\xc9\x75\xfb\xb0\x41\xe6\x80\xf4"
    memory[0x1000 : 0x1000 + len(code)] = code
    # PML4, PDPT, and one page of 2 MiB that maps everything to itself
    for place, entry in ((0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x83)):
        memory[place : place + 8] = struct.pack("<Q", entry)
    return memory


def _features(kvm: int, cpu: int) -> None:
    """Give the guest every CPU feature that there is."""
    room = 256
    table = bytearray(8 + 40 * room)
    table[0:4] = struct.pack("I", room)
    fcntl.ioctl(kvm, _GET_SUPPORTED_CPUID, table)
    count = min(struct.unpack_from("I", table)[0], 100)
    struct.pack_into("I", table, 0, count)
    fcntl.ioctl(cpu, _SET_CPUID2, table[: 8 + 40 * 100], True)  # noqa: FBT003


def _long_mode(cpu: int) -> None:
    state = bytearray(312)
    fcntl.ioctl(cpu, _GET_SREGS, state)
    layout = "<QIHBBBBBBBBBx"  # struct kvm_segment
    code = struct.pack(layout, 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0)
    data = struct.pack(layout, 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0)
    state[0:24] = code
    for number in range(1, 6):
        state[24 * number : 24 * number + 24] = data
    # cr0, cr2, cr3, cr4, cr8, efer stand behind 8 segments and 2 tables
    state[224:272] = struct.pack("<6Q", 0x80000033, 0, 0x2000, 0x20, 0, 0x500)
    fcntl.ioctl(cpu, _SET_SREGS, bytes(state))
    registers = bytearray(144)
    registers[128:136] = struct.pack("Q", 0x1000)  # rip
    registers[136:144] = struct.pack("Q", 2)  # rflags
    registers[48:56] = struct.pack("Q", 0x8000)  # rsp
    fcntl.ioctl(cpu, _SET_REGS, bytes(registers))
