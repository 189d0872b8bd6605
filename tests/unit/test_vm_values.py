"""Virtual machines as values: devices, options, QEMU's command line, headers of images."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from pyvz.errors import BadValue, NotFound, StorageError, Unsupported, UsageError, VZError
from pyvz.model.config import Config
from pyvz.model.grammar_machine import BootDevices, Drive, Drives, HostPci, HostUsb, SerialPorts
from pyvz.operations import machineoptions
from pyvz.vm import accelerator, commandline, image
from pyvz.vm.spec import (
    DriveSpec,
    Firmware,
    Layout,
    MachineSpec,
    NicSpec,
    PciSpec,
    Remote,
    SerialSpec,
    Sockets,
    UsbSpec,
    boot_places,
    from_config,
    laid_out,
)

GOLDEN = Path(__file__).parent / "golden"
SOCKETS = Sockets(10, 11, 12)
BASE = {"VM_DRIVES": "name=hdd0,size=1024,image=harddisk.hdd;name=cdrom0,position=1,format=raw"}


def spec(**changes: object) -> MachineSpec:
    made = MachineSpec(
        uuid="1b3c7c7e-2222-4a4a-8b8b-000000000002",
        name="db",
        chipset="q35",
        type="pc-q35-7.2",
        accelerator="tcg",
        cpus=2,
        max_cpus=8,
        memory=1024,
        max_memory=4096,
        drives=(
            DriveSpec("hdd0", "scsi", 0, "qcow2", "/dev/fdset/20", direct=True, boot=1),
            DriveSpec("cdrom0", "scsi", 1, readonly=True, boot=2),
        ),
        serials=(SerialSpec("serial0", ""),),
        files=(20,),
    )
    return made._replace(**changes)  # type: ignore[arg-type]


MACHINES = {
    "vm-plain": spec(),
    "vm-everything": spec(
        chipset="piix",
        type="",
        accelerator="kvm",
        sockets=2,
        usb=True,
        sound=True,
        usb_devices=(UsbSpec("usb1", "/dev/fdset/27", 27),),
        pci_devices=(PciSpec("pci1", "0000:03:00.0"),),
        boot_menu=True,
        remote=Remote("::1", 5905, True),
        firmware=Firmware("/usr/share/OVMF/CODE.fd", "/dev/fdset/21"),
        drives=(
            DriveSpec(
                "hdd0",
                "virtio",
                3,
                "qcow2",
                "/dev/fdset/20",
                base="/dev/fdset/22",
                secret="key-hdd0",
            ),
            DriveSpec("hdd1", "ide", 2, "raw", "/dev/fdset/23", driver="host_device", serial="S1"),
            DriveSpec("cdrom0", "ide", 1, "raw", "/dev/fdset/24", readonly=True),
        ),
        nics=(
            NicSpec("net0", "00:18:51:00:00:01", 30),
            NicSpec("net1", "00:18:51:00:00:02", 31, "e1000"),
        ),
        serials=(SerialSpec("serial0", ""), SerialSpec("serial1", "file,path=/dev/fdset/25")),
        files=(20, 21, 22, 23, 24, 25, 27),
        secrets=(("key-hdd0", 26),),
        incoming=True,
    ),
    "vm-trusted": spec(
        firmware=Firmware("/usr/share/OVMF/CODE.secboot.fd", "/dev/fdset/21", secure=True),
        tpm=27,
        hugepages=True,
        memory_lock=True,
        cpu_model="Westmere",
        cpu_features=(("avx2", True), ("hle", False)),
        channels=("org.example.0",),
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_command_line(name: str) -> None:
    """Golden: what differs on purpose is written anew with PYVZ_REGEN=1."""
    channels = tuple(range(40, 40 + len(MACHINES[name].channels)))
    words = commandline.argv(MACHINES[name], SOCKETS._replace(channels=channels))
    text = "".join(f"{'' if word.startswith('-') else '    '}{word}\n" for word in words)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PYVZ_REGEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_secure_boot_needs_its_board() -> None:
    plain = Config.parse(BASE)
    on = ("efi-secure-boot", "on")
    with pytest.raises(UsageError, match="UEFI"):
        machineoptions.plan(plain, "prlctl", (on,))
    made = machineoptions.plan(plain, "prlctl", (("efi-boot", "on"), on))
    with pytest.raises(UsageError, match="UEFI"):
        machineoptions.plan(made.config, "prlctl", (("efi-boot", "off"),))
    old = Config.parse(BASE | {"VM_CHIPSET": "piix", "VM_EFI": "yes"})
    with pytest.raises(UsageError, match="q35"):
        machineoptions.plan(old, "prlctl", (on,))


def test_nothing_below_an_image_is_left_to_the_image() -> None:
    for drive in MACHINES["vm-everything"].drives + MACHINES["vm-plain"].drives:
        for node in commandline.blockdevs(drive):
            if node["driver"] == "qcow2":
                assert "backing" in node


def test_a_ploop_disk_begins_behind_its_table() -> None:
    drive = DriveSpec("hdd1", "scsi", 2, "raw", "/dev/fdset/20", offset=4 << 20)
    file, disk = commandline.blockdevs(drive)
    assert (disk["driver"], disk["offset"], disk["discard"]) == ("raw", 4 << 20, "unmap")
    assert "offset" not in file
    assert "offset" not in commandline.blockdevs(drive._replace(offset=0))[1]


def test_what_is_plugged_in_is_what_would_have_been_there() -> None:
    """A device has its place from its name and position alone."""
    one = commandline.drive_device(DriveSpec("hdd3", "virtio", 2, file="x"), "q35")
    assert one["bus"] == "port10"
    assert commandline.nic_device(NicSpec("net7", "m", 1), "q35")["bus"] == "port7"


@pytest.mark.parametrize(
    "text",
    [
        "image=x", "name=disk0", "name=hdd0;name=hdd0", "name=hdd0,iface=floppy",
        "name=hdd0,format=vmdk,image=x", "name=hdd0,size=x", "name=hdd0,colour=red", "name",
        "name=hdd0,serial=" + "x" * 37,
    ],
)  # fmt: skip
def test_drives_that_are_none(text: str) -> None:
    with pytest.raises(BadValue):
        Drives().parse(text)


def test_paths_of_drives_may_hold_commas() -> None:
    text = "name=hdd0,size=5,image=/a,b=c.img"
    assert Drives().parse(text)[0].image == "/a,b=c.img"
    assert Drives().format(Drives().parse(text)) == text
    port = "name=serial1,kind=file,target=/tmp/a,b"
    assert SerialPorts().format(SerialPorts().parse(port)) == port
    with pytest.raises(BadValue):
        SerialPorts().parse("name=serial9,kind=pigeon")


def test_boot_order() -> None:
    config = Config.parse(BASE)
    assert boot_places(config) == {"hdd0": 1, "cdrom0": 2}
    config = Config.parse(BASE | {"VM_BOOT": "cdrom0 hdd0"})
    assert boot_places(config) == {"cdrom0": 1, "hdd0": 2}
    for text in ("hdd0 hdd0", "tape0"):
        with pytest.raises(BadValue):
            BootDevices().parse(text)


def planned(*options: tuple[str, str | None], **values: str) -> machineoptions.MachinePlan:
    return machineoptions.plan(Config.parse(BASE | values), "prlctl", options)


def test_a_disk_is_added_at_the_first_free_place() -> None:
    made = planned(("device-add", "hdd"), ("size", "10G"), ("iface", "virtio"), ("cpus", "3"))
    drive = made.config.machine.drives[2]
    assert (drive.name, drive.iface, drive.position, drive.size) == ("hdd1", "virtio", 0, 10 << 20)
    assert made.config.cpu.cpus == 3
    assert made.echo == ("set device-add hdd", "set size 10G", "set iface virtio", "set cpus 3")
    assert planned(("device-add", "hdd")).config.machine.drives[2].position == 2


def test_a_disc_is_put_in_and_taken_out() -> None:
    made = planned(("device-set", "cdrom0"), ("image", "/x.iso"))
    assert made.config.machine.drives[1].image == "/x.iso"
    out = machineoptions.plan(made.config, "prlctl", (("device-disconnect", "cdrom0"),))
    assert not out.config.machine.drives[1].connected
    again = machineoptions.plan(out.config, "prlctl", (("device-connect", "cdrom0"),))
    assert again.config.machine.drives[1].connected


@pytest.mark.parametrize(
    "options",
    [
        [("device-del", "hdd9")],
        [("device-add", "fdd")],
        [("device-add", "hdd"), ("device-del", "hdd0")],
        [("device-set", "hdd0"), ("image", "/other.hdd")],
        [("device-set", "hdd0"), ("position", "1")],
        [("device-set", "hdd0"), ("position", "7")],
        [("device-set", "hdd0"), ("size", "unlimited")],
        [("vnc-passwd", "far too long for this")],
        [("capability", "SYS_ADMIN:on")],
        [("device-set", "serial0"), ("output", "/x")],
        [("device-add", "usb"), ("device", "a mouse")],
        [("device-del", "usb1")],
        [("device-set", "usb0"), ("enable", None)],
        [("cpus", "0")],
        [("cpus", "289")],
        [("device-bootorder", "cdrom0 net0")],
        [("swap", "1G")],
        [("numproc", "100")],
        [("diskspace", "unlimited")],
        [("device-del", "hdd0"), ("detach-only", None), ("destroy-image", None)],
        [("device-set", "cdrom0"), ("recreate", None)],
        [("device-set", "hdd0"), ("passthr", None)],
        [("device-add", "serial"), ("socket-tcp", "nowhere")],
        [("device-add", "serial"), ("socket-tcp", "::1,id=x:1")],
        [("device-add", "serial"), ("device", "/dev/ttyS0")],
    ],
)
def test_options_that_are_refused(options: list[tuple[str, str | None]]) -> None:
    with pytest.raises(VZError):
        planned(*options)


def test_diskspace_is_the_size_of_the_first_disk() -> None:
    made = planned(("diskspace", "100G"))
    assert made.config.machine.drives[0].size == 100 << 20
    assert made.config.disk.space is None


def test_serial_ports_and_usb() -> None:
    made = planned(("device-add", "serial"), ("socket-tcp", "h:1"), ("socket-mode", "client"))
    port = made.config.machine.serials[0]
    assert (port.name, port.kind, port.mode, port.target) == ("serial0", "tcp", "client", "h:1")
    assert planned(("device-add", "usb")).config.machine.usb
    with pytest.raises(UsageError):
        planned(("device-add", "usb"), VM_USB="yes")


def test_a_sound_card() -> None:
    made = planned(("device-add", "sound")).config
    assert made.machine.sound
    for words in (("device-add", "sound"), ("device-set", "sound0")):
        with pytest.raises(UsageError):
            machineoptions.plan(made, "prlctl", (words,))
    gone = machineoptions.plan(made, "prlctl", (("device-del", "sound0"),)).config
    assert not gone.machine.sound
    with pytest.raises(VZError, match="no device sound0"):
        machineoptions.plan(gone, "prlctl", (("device-del", "sound0"),))


def test_usb_devices_of_the_node() -> None:
    made = planned(("device-add", "usb"), ("device", "046D:C52B")).config
    assert made.machine.usb_devices == (HostUsb("usb1", "046d:c52b"),)
    assert not made.machine.usb
    spec = from_config("u", "n", made, cpus=2, accelerator="tcg")
    assert spec.usb  # it hangs on a controller
    two = machineoptions.plan(made, "prlctl", (("device-add", "usb"), ("device", "1.14"))).config
    stored = two.differences(Config.parse(BASE))["VM_USB_DEVICES"]
    assert stored == "usb1=046d:c52b usb2=1.14"
    one = machineoptions.plan(two, "prlctl", (("device-del", "usb1"),)).config
    assert [each.name for each in one.machine.usb_devices] == ["usb2"]
    with pytest.raises(UsageError):
        machineoptions.plan(one, "prlctl", (("device-del", "usb0"),))


def test_pci_devices_of_the_node() -> None:
    made = planned(("device-add", "pci"), ("device", "03:00.0")).config
    assert made.machine.pci_devices == (HostPci("pci1", "0000:03:00.0"),)
    again = (("device-add", "pci"), ("device", "0000:03:00.0"))
    with pytest.raises(BadValue, match="pci1 already"):
        machineoptions.plan(made, "prlctl", again)
    two = machineoptions.plan(made, "prlctl", (again[0], ("device", "04:00.0"))).config
    assert [each.name for each in two.machine.pci_devices] == ["pci1", "pci2"]
    one = machineoptions.plan(two, "prlctl", (("device-del", "pci1"),)).config
    assert one.differences(Config.parse(BASE))["VM_PCI_DEVICES"] == "pci2=0000:04:00.0"
    for words in ([("device-add", "pci")], [("device-add", "pci"), ("device", "eth0")]):
        with pytest.raises(VZError):
            planned(*words)
    with pytest.raises(NotFound):
        machineoptions.plan(one, "prlctl", (("device-del", "pci1"),))


def test_the_password_of_the_display_is_told_to_nobody() -> None:
    made = planned(("vnc-passwd", "geheim"), ("vnc-mode", "auto"))
    assert "geheim" not in repr(made)
    assert made.secret is not None
    assert made.secret.reveal() == "geheim"
    assert planned(("vnc-nopasswd", None)).config.machine.vnc_open


def test_from_config() -> None:
    config = Config.parse(BASE | {"CPUS": "3", "VM_SOCKETS": "2", "PHYSPAGES": "131072:131072"})
    made = from_config("u", "n", config, cpus=4, accelerator="tcg")
    assert (made.cpus, made.max_cpus, made.sockets, made.memory) == (3, 8, 2, 512)
    fixed = config.changed({"machine.cpu_hotplug": False, "machine.mem_hotplug": False})
    made = from_config("u", "n", fixed, cpus=4, accelerator="tcg")
    assert (made.max_cpus, made.max_memory) == (4, 512)  # sockets times cores


def test_layout_survives_json() -> None:
    layout = Layout("q35", 1, 8, 256, 4096, 2, (128, 256))
    assert Layout.from_json(json.loads(json.dumps(layout._asdict()))) == layout
    older = {key: value for key, value in layout._asdict().items() if key != "usb"}
    assert Layout.from_json(older).usb is None
    assert laid_out(spec(usb=True), layout).usb
    assert not laid_out(spec(usb=True), layout._replace(usb=False)).usb
    for garbage in (None, {}, {"dimms": "x"}, [1], {"dimms": [], "unknown": 1}):
        with pytest.raises(ValueError, match="layout"):
            Layout.from_json(garbage)


def qcow2(path: Path, *, backing: bytes = b"", features: int = 0, crypt: int = 0) -> Path:
    offset = 512 if backing else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, offset, len(backing), 16, 1 << 30, crypt, 1, 0x30000, 0x10000, 1, 0, 0,
        features, 0, 0, 4, 104,
    )  # fmt: skip
    path.write_bytes(head.ljust(512, b"\0") + backing)
    os.truncate(path, 0x40000)  # with room for the tables that it names
    return path


def test_headers_of_images(tmp_path: Path) -> None:
    good = qcow2(tmp_path / "a")
    assert image.look(good) == image.Image("qcow2", 1 << 30)
    image.check(image.look(good), good, "qcow2")
    (tmp_path / "raw").write_bytes(b"\0" * 1024)
    assert image.look(tmp_path / "raw") == image.Image("raw", 1024)
    (tmp_path / "vmdk").write_bytes(b"KDMV" + b"\0" * 600)
    assert image.look(tmp_path / "vmdk").format == "vmdk"


@pytest.mark.parametrize("backing", [b"/etc/shadow", b"json:{}", b"nbd://elsewhere"])
def test_an_image_that_names_another_file_is_refused(tmp_path: Path, backing: bytes) -> None:
    path = qcow2(tmp_path / "a", backing=backing)
    with pytest.raises(StorageError, match="names another file"):
        image.check(image.look(path), path, "qcow2")


def test_other_hostile_images_are_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a", features=4)
    with pytest.raises(StorageError, match="another file"):
        image.check(image.look(path), path, "qcow2")
    with pytest.raises(StorageError, match="not a raw"):
        image.check(image.look(path)._replace(data_file=False), path, "raw")
    path = qcow2(tmp_path / "b", crypt=2)
    with pytest.raises(StorageError, match="is encrypted"):
        image.check(image.look(path), path, "qcow2")
    image.check(image.look(path), path, "qcow2", keyed=True)
    with pytest.raises(StorageError, match="is not encrypted"):
        image.check(image.look(qcow2(tmp_path / "c")), path, "qcow2", keyed=True)
    with pytest.raises(Unsupported, match="keeps no secret"):
        image.check(image.look(qcow2(tmp_path / "d", crypt=1)), path, "qcow2", keyed=True)
    (tmp_path / "torn").write_bytes(b"QFI\xfb\0\0")
    with pytest.raises(StorageError, match="torn"):
        image.look(tmp_path / "torn")
    os.truncate(qcow2(tmp_path / "cut"), 0x30007)
    with pytest.raises(StorageError, match="torn"):
        image.look(tmp_path / "cut")
    (tmp_path / "odd").write_bytes(b"QFI\xfb" + b"\xff" * 600)
    with pytest.raises(StorageError, match="makes sense"):
        image.look(tmp_path / "odd")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError):
        image.look(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="neither a file"):
        image.look(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("flags", "modules", "word"),
    [
        ("fpu sse2", [], "no vmx"),
        ("fpu vmx", ["kvm_pvm"], "kvm_pvm"),
        ("fpu vmx", ["kvm_pvm", "kvm_intel"], ""),
        ("fpu svm", [], ""),
    ],
)
def test_where_there_can_be_no_kvm(
    tmp_path: Path, flags: str, modules: list[str], word: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    for name in modules:
        (tmp_path / name).mkdir()
    reason = accelerator.unlikely(tmp_path / "cpuinfo", tmp_path)
    assert word in reason
    assert bool(reason) == bool(word)


def test_the_verdict_is_kept_while_the_kernel_has_the_same_kvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = [accelerator.Accelerator("tcg", "no"), accelerator.Accelerator("kvm", "yes")]
    monkeypatch.setattr(accelerator, "probe", lambda: verdicts.pop(0))
    monkeypatch.setattr(accelerator, "MODULES", tmp_path)
    for _ in range(2):
        assert accelerator.choose(tmp_path).name == "tcg"
    (tmp_path / "kvm_amd").mkdir()
    for _ in range(2):
        assert accelerator.choose(tmp_path).name == "kvm"


def test_the_accelerator_may_be_forced(tmp_path: Path) -> None:
    assert accelerator.choose(tmp_path, "tcg").name == "tcg"
    assert accelerator.choose(tmp_path, "KVM").name == "kvm"
    with pytest.raises(BadValue):
        accelerator.choose(tmp_path, "xen")


def test_a_drive_prints_only_what_differs() -> None:
    assert Drives().format((Drive("hdd0"),)) == "name=hdd0"
