"""Options of ``set`` that are no parameter: they act, choose a device, or are only accepted.

The desktop-product leftovers of prlctl(8) are accepted with a warning, because scripts give them.
"""

from __future__ import annotations

from pyvz.errors import BadValue
from pyvz.model import params_disk, params_net
from pyvz.model.grammar import Choice
from pyvz.model.param import CONTAINERS, MACHINES, Option

_DESKTOP = "this is an option of desktop products and has no effect"
_OFFLINE = "offline management is gone and this has no effect"


def _user_password(text: str) -> str:
    user, colon, _password = text.partition(":")
    if not colon or not user:
        # The value is a secret: it is not repeated.
        raise BadValue("give USER:PASSWORD")
    return text


def _refuse_memquota(_text: str) -> str:
    raise BadValue("this option is gone", hint="Use --memguarantee.")


_PASSWORD = Option("userpasswd", "USER:PASSWORD", "set a password inside", parse=_user_password)
_CRYPTED = Option("crypted", "", "the password of --userpasswd is a hash", kinds=CONTAINERS)
_APPLY = Option("applyconfig", "SAMPLE", "take the parameters of a sample configuration")
_DEVICES = (
    Option("device-add", "TYPE", "add a device: hdd, cdrom, net, ..."),
    Option("device-set", "NAME", "change a device: hdd0, net0, venet0, ..."),
    Option("device-del", "NAME", "remove a device"),
)
_IMAGE_KIND = "images grow as they are used"
_DISK = (
    Option("recreate", "", "make the image anew; one that is there is refused", scope="disk"),
    Option("detach-only", "", "keep the image of a removed disk", scope="disk"),
    Option("destroy-image", "", "remove the image with the disk", scope="disk"),
    Option("destroy-image-force", "", "also when snapshots have it", scope="disk"),
    Option(
        "offline", "", "", scope="disk", ignored="what must be offline is refused while it runs"
    ),
    Option(
        "encryption-keyid", "ID", "encrypt the image with this key", scope="disk", kinds=MACHINES
    ),
    Option(
        "encrypt", "", "encrypt the image; needs --encryption-keyid", scope="disk", kinds=MACHINES
    ),
    Option("decrypt", "", "keep the image unencrypted", scope="disk", kinds=MACHINES),
    Option("reencrypt", "", "encrypt the image anew", scope="disk", kinds=MACHINES),
    Option("no-wipe", "", "", scope="disk", ignored="the old image is removed, not overwritten"),
    Option("type", "expand", "kind of the image", scope="disk", ignored=_IMAGE_KIND),
    Option("hdd-block-size", "N", "", scope="disk", ignored=_IMAGE_KIND),
)

_PORT = (
    Option("connect", "", "plug it in", scope="disk", short="c", kinds=MACHINES),
    Option("disconnect", "", "unplug it", scope="disk", kinds=MACHINES),
    Option("output", "FILE", "file that a serial port writes to", scope="disk", kinds=MACHINES),
    Option("socket", "PATH", "socket of a serial port", scope="disk", kinds=MACHINES),
    Option("socket-tcp", "HOST:PORT", "as TCP", scope="disk", kinds=MACHINES),
    Option("socket-udp", "HOST:PORT", "as UDP", scope="disk", kinds=MACHINES),
    Option("socket-mode", "server|client", "who listens", scope="disk", kinds=MACHINES),
    Option("no-fs-resize", "", "", scope="disk", ignored="file systems are the guest's business"),
)
_PRLCTL_MACHINE_FLAGS = (
    ("numa-nodes", "N", "number of NUMA nodes"),
    ("rename-ext-disks", "", "rename images of disks with --name"),
    ("update-nvram", "", "renew the EFI variables"),
    ("external-boot-device", "NAME", "boot device outside"),
    ("pmu-virt", "on|off", "performance counters inside"),
    ("system-flags", "TEXT", "flags of the virtual machine"),
    ("vnc-passwd", "TEXT|-", "password of the remote display"),
    ("backup-path", "PATH", "where backups are kept"),
)
_DESKTOP_OPTIONS = (
    "3d-accelerate vertical-sync usedefanswers password-to-edit require-pwd lock-edit-settings "
    "expiration smart-guard sg-notify-before-create sg-interval sg-max-snapshots startup-view "
    "on-shutdown on-window-close undo-disks faster-vm adaptive-hypervisor auto-compress "
    "longer-battery-life battery-status smart-mount sync-vm-hostname sync-ssh-ids "
    "sync-default-printer auto-share-camera auto-share-bluetooth support-usb30 "
    "smart-mouse-optimize sticky-mouse keyboard-optimize isolate-vm high-resolution "
    "winsystray-in-macmenu disable-aero hide-min-windows auto-switch-fullscreen vnc-clipboard "
    "host-admin"
)

PRLCTL: tuple[Option, ...] = (
    _PASSWORD,
    _CRYPTED,
    _APPLY,
    *_DEVICES,
    *_DISK,
    Option("device-connect", "NAME", "plug a device in"),
    Option("device-disconnect", "NAME", "unplug a device"),
    Option("ifname", "IFNAME", "the interface that further options are about", kinds=CONTAINERS),
    Option("apptemplate", "NAME", "install an application template", repeat=True),
    Option("memquota", "SIZE", "gone: see --memguarantee", parse=_refuse_memquota),
    Option("offline-management", "on|off", "", aliases=("offman",), ignored=_OFFLINE),
    Option("offline-service", "NAME", "", aliases=("offsrv",), repeat=True, ignored=_OFFLINE),
    *(Option(a, b, c, kinds=MACHINES) for a, b, c in _PRLCTL_MACHINE_FLAGS),
    *_PORT,
    *params_disk.MACHINE_ONLY,
    *params_net.MACHINE_ONLY,
    *(Option(name, "VALUE", "", ignored=_DESKTOP) for name in _DESKTOP_OPTIONS.split()),
)

VZCTL: tuple[Option, ...] = (
    Option("save", "", "keep the change in the configuration file"),
    Option(
        "setmode",
        "restart|ignore",
        "what to do with a change that needs a restart",
        parse=Choice(("restart", "ignore")).parse,
    ),
    Option("reset_ub", "", "put the limits of the configuration file back in force"),
    _PASSWORD,
    _CRYPTED,
    _APPLY,
    Option("applyconfig_map", "GROUP", "take a group of parameters of a sample"),
    *_DEVICES,
    Option("ifname", "IFNAME", "the interface that further options are about"),
    Option("netif_mac_renew", "", "give every interface a new hardware address"),
    *params_net.ACTIONS,
    *_DISK,
    Option("offline_management", "yes|no", "", ignored=_OFFLINE),
    Option("offline_service", "NAME", "", repeat=True, ignored=_OFFLINE),
)

ACTIONS: dict[str, tuple[Option, ...]] = {"prlctl": PRLCTL, "vzctl": VZCTL}
