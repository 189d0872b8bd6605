"""The table of parameters: every row and every option is exercised."""

from __future__ import annotations

import pytest

from pyvz.errors import BadValue, UsageError
from pyvz.model.config import Config
from pyvz.model.environment import Kind
from pyvz.model.grammar_disk import DiskEntry
from pyvz.model.grammar_net import NetIf
from pyvz.model.param import normal
from pyvz.model.params import ACTIONS, BY_FIELD, PARAMS, by_key, by_option, changes, options

SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFQCxC8IXVIw7G4afjasSbWRfg8GvkScJ3NLtzqthaYI"

# key -> (text as a user may write it, text as it is stored)
STORED = {
    "VEID": ("101", "101"),
    "UUID": ("{6F1D7A52-51D4-4F0B-9C5E-9D0C1F2A7B10}", "6f1d7a52-51d4-4f0b-9c5e-9d0c1f2a7b10"),
    "NAME": ("web 1", "web 1"),
    "DESCRIPTION": ("a=20b", "a=20b"),
    "VE_ROOT": ("/vz/root/$VEID", "/vz/root/$VEID"),
    "VE_PRIVATE": ("/vz/private/$VEID", "/vz/private/$VEID"),
    "VE_TYPE": ("Template", "template"),
    "VERSION": ("2", "2"),
    "VEFORMAT": ("vz4", "vz4"),
    "PLATFORM": ("linux", "linux"),
    "OSTEMPLATE": (".debian-12", ".debian-12"),
    "TEMPLATES": ("mysql,php", "mysql php"),
    "TEMPLATE": ("/vz/template", "/vz/template"),
    "TECHNOLOGIES": ("nptl x86_64", "nptl x86_64"),
    "DISTRIBUTION": ("debian", "debian"),
    "ORIGIN_SAMPLE": ("basic", "basic"),
    "CONFIG_CUSTOMIZED": ("yes", "yes"),
    "CONFIGFILE": ("basic", "basic"),
    "DISABLED": ("on", "yes"),
    "ONBOOT": ("auto", "auto"),
    "BOOTORDER": ("10", "10"),
    "AUTOSTOP": ("suspend", "suspend"),
    "OSRELEASE": ("3.10.0", "3.10.0"),
    "VE_ENVIRONMENT": ("A=B C='d e'", "A=B C='d e'"),
    "ALLOWREBOOT": ("no", "no"),
    "HA_ENABLE": ("no", "no"),
    "HA_PRIO": ("4294967295", "4294967295"),
    "CPUUNITS": ("500000", "500000"),
    "CPUWEIGHT": ("100", "100"),
    "CPULIMIT": ("200", "200"),
    "CPULIMIT_MHZ": ("1500", "1500"),
    "CPUS": ("2", "2"),
    "CPUMASK": ("3,0-2", "0-3"),
    "NODEMASK": ("0,1", "0-1"),
    "BURST_CPULIMIT": ("150", "150"),
    "BURST_CPU_AVG_USAGE": ("30", "30"),
    "IOPRIO": ("7", "7"),
    "IOLIMIT": ("10485760", "10485760"),
    "IOPSLIMIT": ("100", "100"),
    "PHYSPAGES": ("0:256M", "0:65536"),
    "SWAPPAGES": ("unlimited", "9223372036854775807:9223372036854775807"),
    "VM_OVERCOMMIT": ("1.5", "1.5"),
    "MEMGUARANTEE": ("auto", "auto"),
    "MEMGUARANTEE_BYTES": ("1M", "1048576"),
    "PAGECACHE_ISOLATION": ("no", "no"),
    "NUMMEMORYSUBGROUPS": ("512", "512"),
    "MEMINFO": ("privvmpages:3", "privvmpages:3"),
    "NUMPROC": ("100:200", "100:200"),
    "SLMMODE": ("all", "all"),
    "SLMMEMORYLIMIT": ("1G:1G", "1073741824:1073741824"),
    "DISKSPACE": ("2G:2.2G", "2097152:2306868"),
    "DISKINODES": ("1000:1100", "1000:1100"),
    "QUOTATIME": ("0", "0"),
    "QUOTAUGIDLIMIT": ("200", "200"),
    "DISK_QUOTA": ("no", "no"),
    "JOURNALED_QUOTA": ("yes", "yes"),
    "DISK": ("size=1G,mnt=/data,image=a.hdd", "size=1048576,enabled=yes,mnt=/data,image=a.hdd"),
    "BINDMOUNT": ("/srv:/data,ro /x", "/srv:/data,ro /x"),
    "VE_LAYOUT": ("ploop:expanded", "ploop:expanded"),
    "VEFSTYPE": ("xfs", "xfs"),
    "VEIMAGEFORMAT": ("ploop", "ploop"),
    "AUTOCOMPACT": ("no", "no"),
    "ROOT_DISK": ("no", "no"),
    "NOATIME": ("yes", "yes"),
    "MOUNT_OPTS": ("nodelalloc", "nodelalloc"),
    "IP_ADDRESS": ("10.0.0.2/24,::1", "10.0.0.2/24 ::1"),
    "EXT_IP_ADDRESS": ("10.0.0.3", "10.0.0.3"),
    "NETIF": ("ifname=eth0,dhcp=yes,network=br", "ifname=eth0,network=br,dhcp=yes"),
    "NETDEV": ("eth1 eth2", "eth1 eth2"),
    "HOSTNAME": ("web.example.com.", "web.example.com"),
    "NAMESERVER": ("8.8.8.8,::1", "8.8.8.8 ::1"),
    "SEARCHDOMAIN": ("example.com", "example.com"),
    "APPLY_IPONLY": ("yes", "yes"),
    "USE_NET_RPS": ("no", "no"),
    "RATE": ("*:1:8 eth0:2:9", "*:1:8 eth0:2:9"),
    "RATEBOUND": ("yes", "yes"),
    "NETFILTER": ("stateful", "stateful"),
    "FIREWALL": (
        "ifname=eth0,fw=on,in=deny,in_rule=tcp 0 22 10.0.0.1/8 *",
        "ifname=eth0,fw=on,in=deny,in_rule=tcp * 22 10.0.0.0/8 *",
    ),
    "IPTABLES": ("ip_tables ipt_REJECT", "ip_tables ipt_REJECT"),
    "FEATURES": ("nfs:on,sit:off", "nfs:on sit:off"),
    "CAPABILITY": ("net_admin:on", "NET_ADMIN:on"),
    "PRIVILEGED": ("yes", "yes"),
    "DEVNODES": ("fuse:rw net/tun:r", "fuse:rw net/tun:r"),
    "DEVICES": ("c:10:200:rw,b:8:all:r", "c:10:200:rw b:8:all:r"),
    "PCI": ("00:1f.2", "00:1f.2"),
    "VM_DRIVES": (
        "name=hdd0,iface=scsi,size=10,image=a,b.hdd;name=cdrom0,position=1,format=raw",
        "name=hdd0,size=10,image=a,b.hdd;name=cdrom0,position=1,format=raw",
    ),
    "VM_SERIALS": ("name=serial0,kind=tcp,target=h:1", "name=serial0,kind=tcp,target=h:1"),
    "VM_USB": ("on", "yes"),
    "VM_SOUND": ("on", "yes"),
    "VM_USB_DEVICES": ("usb1=046D:C52B  usb2=1.4", "usb1=046d:c52b usb2=1.4"),
    "VM_PCI_DEVICES": ("pci1=03:00.0  pci2=0001:0A:1f.7", "pci1=0000:03:00.0 pci2=0001:0a:1f.7"),
    "VM_BOOT": ("cdrom0, hdd0", "cdrom0 hdd0"),
    "VM_SOCKETS": ("2", "2"),
    "VM_CPU_HOTPLUG": ("off", "no"),
    "VM_MEM_HOTPLUG": ("off", "no"),
    "VM_VIDEO": ("32", "32"),
    "VM_EFI": ("on", "yes"),
    "VM_SECURE_BOOT": ("on", "yes"),
    "VM_TPM": ("on", "yes"),
    "VM_HUGEPAGES": ("on", "yes"),
    "VM_MEMORY_LOCK": ("yes", "yes"),
    "VM_CPU_MODEL": ("Westmere-v1", "Westmere-v1"),
    "VM_CPU_FEATURES": ("+avx2, disable:tsc_adjust", "require:avx2 disable:tsc-adjust"),
    "VM_SSH_KEYS": (f"{SSH_KEY}  me@home\n", f"{SSH_KEY} me@home"),
    "VM_CHANNELS": ("org.a.0,org.b.0", "org.a.0 org.b.0"),
    "VM_CLOUD_INIT": ("yes", "yes"),
    "VM_BOOT_MENU": ("on", "yes"),
    "VM_CHIPSET": ("PIIX", "piix"),
    "VM_MACHINE": ("pc-q35-7.2", "pc-q35-7.2"),
    "VM_ON_CRASH": ("pause", "pause"),
    "VM_NESTED": ("on", "yes"),
    "VM_VNC": ("auto", "auto"),
    "VM_VNC_PORT": ("5901", "5901"),
    "VM_VNC_ADDRESS": ("127.0.0.1", "127.0.0.1"),
    "VM_VNC_NOPASSWD": ("on", "yes"),
    "VM_AUTOSTART_DELAY": ("30", "30"),
    "VM_TOOLS_UPDATE": ("off", "no"),
}
COUNTERS = {row.key: ("5:6", "5:6") for row in PARAMS if row.key not in STORED and row.ignored}

# (dialect, option, text, the text that is stored under the row's key then)
OPTIONS = [
    ("prlctl", "cpus", "unlimited", "0"),
    ("vzctl", "cpus", "2", "2"),
    ("prlctl", "cpuunits", "8", "8"),
    ("vzctl", "cpuunits", "500000", "500000"),
    ("vzctl", "cpuweight", "100", "100"),
    ("vzctl", "burst_cpulimit", "150", "150"),
    ("prlctl", "cpulimit", "50%", "50"),
    ("vzctl", "cpulimit", "200", "200"),
    ("prlctl", "cpumask", "0-1", "0-1"),
    ("vzctl", "cpumask", "auto", "auto"),
    ("prlctl", "nodemask", "0", "0"),
    ("vzctl", "nodemask", "0,1", "0-1"),
    ("prlctl", "ioprio", "0", "0"),
    ("vzctl", "ioprio", "7", "7"),
    ("prlctl", "iolimit", "10", "10485760"),
    ("prlctl", "iolimit", "10K", "10240"),
    ("vzctl", "iolimit", "10", "10"),
    ("prlctl", "iopslimit", "0", "0"),
    ("vzctl", "iopslimit", "100", "100"),
    ("prlctl", "memsize", "512", "131072:131072"),
    ("prlctl", "memsize", "1G", "262144:262144"),
    ("vzctl", "ram", "512M", "131072:131072"),
    ("vzctl", "memory", "4097", "2:2"),
    ("vzctl", "physpages", "10:20", "10:20"),
    ("prlctl", "swap", "1M", "256:256"),
    ("vzctl", "swap", "4096", "1:1"),
    ("prlctl", "swappages", "10", "10:10"),
    ("vzctl", "swappages", "unlimited", f"{2**63 - 1}:{2**63 - 1}"),
    ("prlctl", "memguarantee", "auto", "auto"),
    ("vzctl", "memguarantee", "50%", "50"),
    ("vzctl", "num-memory-subgroups", "512", "512"),
    ("prlctl", "numproc", "100", "100:100"),
    ("vzctl", "numproc", "100:200", "100:200"),
    ("prlctl", "name", "new name", "new name"),
    ("vzctl", "name", "new", "new"),
    ("prlctl", "description", "a b=\n", "a=20b=3D=0A"),
    ("vzctl", "description", "x", "x"),
    ("vzctl", "root", "/x", "/x"),
    ("vzctl", "private", "/x", "/x"),
    ("prlctl", "template", "yes", "template"),
    ("vzctl", "vetype", "temporary", "temporary"),
    ("vzctl", "ostemplate", ".debian-12", ".debian-12"),
    ("prlctl", "distribution", "debian", "debian"),
    ("vzctl", "distribution", "debian", "debian"),
    ("vzctl", "origin_sample", "basic", "basic"),
    ("vzctl", "config-customized", "yes", "yes"),
    ("vzctl", "disabled", "yes", "yes"),
    ("prlctl", "device-bootorder", "cdrom0 hdd0", "cdrom0 hdd0"),
    ("prlctl", "cpu-sockets", "2", "2"),
    ("prlctl", "cpu-hotplug", "off", "no"),
    ("prlctl", "mem-hotplug", "off", "no"),
    ("prlctl", "videosize", "32", "32"),
    ("prlctl", "efi-boot", "on", "yes"),
    ("prlctl", "efi-secure-boot", "on", "yes"),
    ("prlctl", "tpm", "on", "yes"),
    ("prlctl", "hugepages", "on", "yes"),
    ("prlctl", "memory-lock", "yes", "yes"),
    ("prlctl", "cloud-init", "yes", "yes"),
    ("prlctl", "cpu-model", "Westmere", "Westmere"),
    ("prlctl", "cpu-features", "-hle force:avx2", "disable:hle force:avx2"),
    ("prlctl", "channels", "org.a.0", "org.a.0"),
    ("prlctl", "ssh-keys", SSH_KEY, SSH_KEY),
    ("prlctl", "select-boot-device", "on", "yes"),
    ("prlctl", "on-crash", "restart:no-report", "restart"),
    ("prlctl", "nested-virt", "on", "yes"),
    ("prlctl", "vnc-mode", "manual", "manual"),
    ("prlctl", "vnc-port", "5901", "5901"),
    ("prlctl", "vnc-address", "::1", "::1"),
    ("prlctl", "vnc-nopasswd", "", "yes"),
    ("prlctl", "autostart-delay", "30", "30"),
    ("prlctl", "tools-autoupdate", "off", "no"),
    ("prlctl", "autostart", "on", "yes"),
    ("prlctl", "onboot", "start-host", "yes"),
    ("vzctl", "onboot", "auto", "auto"),
    ("vzctl", "bootorder", "5", "5"),
    ("prlctl", "autostop", "suspend", "suspend"),
    ("vzctl", "autostop", "stop", "stop"),
    ("vzctl", "autostopt", "stop", "stop"),
    ("prlctl", "ha", "yes", "yes"),
    ("prlctl", "ha_enable", "no", "no"),
    ("vzctl", "ha-enable", "no", "no"),
    ("prlctl", "ha_prio", "7", "7"),
    ("vzctl", "ha_prio", "7", "7"),
    ("prlctl", "diskspace", "10", "10240:10240"),
    ("prlctl", "diskspace", "10G", "10485760:10485760"),
    ("vzctl", "diskspace", "10:20", "10:20"),
    ("vzctl", "diskinodes", "10", "10:10"),
    ("prlctl", "quotaugidlimit", "10", "10"),
    ("vzctl", "quotaugidlimit", "0", "0"),
    ("vzctl", "jquota", "on", "yes"),
    ("prlctl", "bindmount-add", "/srv:/data,ro", "/srv:/data,ro"),
    ("vzctl", "bindmount_add", "/data", "/data"),
    ("prlctl", "bindmount_del", "all", None),
    ("vzctl", "bindmount_del", "all", None),
    ("prlctl", "autocompact", "off", "no"),
    ("vzctl", "autocompact", "on", "yes"),
    ("vzctl", "noatime", "yes", "yes"),
    ("vzctl", "mount_opts", "nodelalloc", "nodelalloc"),
    ("prlctl", "ipadd", "10.0.0.1/24", "10.0.0.1/24"),
    ("prlctl", "ipset", "10.0.0.1,10.0.0.2", "10.0.0.1 10.0.0.2"),
    ("vzctl", "ipadd", "::1", "::1"),
    ("prlctl", "ipdel", "all", None),
    ("vzctl", "ipdel", "all", None),
    ("vzctl", "ext_ipadd", "10.0.0.1", "10.0.0.1"),
    ("vzctl", "ext_ipdel", "all", None),
    ("prlctl", "netif_add", "eth0", "ifname=eth0"),
    ("vzctl", "netif_add", "eth0,001851000001", "ifname=eth0,mac=00:18:51:00:00:01"),
    ("prlctl", "netif_del", "all", None),
    ("vzctl", "netif-del", "all", None),
    ("prlctl", "netdev_add", "eth1", "eth1"),
    ("vzctl", "netdev_add", "eth1", "eth1"),
    ("prlctl", "netdev_del", "all", None),
    ("vzctl", "netdev_del", "all", None),
    ("prlctl", "hostname", "a.b", "a.b"),
    ("vzctl", "hostname", "a", "a"),
    ("prlctl", "nameserver", "8.8.8.8,1.1.1.1", "8.8.8.8 1.1.1.1"),
    ("vzctl", "nameserver", "inherit", "inherit"),
    ("prlctl", "searchdomain", "", None),
    ("vzctl", "searchdomain", "a.b", "a.b"),
    ("prlctl", "apply-iponly", "yes", "yes"),
    ("vzctl", "apply_iponly", "yes", "yes"),
    ("prlctl", "rate", "1:100", "*:1:100"),
    ("vzctl", "rate", "eth0:1:100", "eth0:1:100"),
    ("prlctl", "ratebound", "yes", "yes"),
    ("vzctl", "ratebound", "yes", "yes"),
    ("prlctl", "netfilter", "full", "full"),
    ("vzctl", "netfilter", "stateless", "stateless"),
    ("prlctl", "features", "nfs:on,nesting:on", "nfs:on nesting:on"),
    ("vzctl", "features", "time:off", "time:off"),
    ("prlctl", "capability", "NET_ADMIN:on", "NET_ADMIN:on"),
    ("vzctl", "capability", "sys_time:off", "SYS_TIME:off"),
    ("prlctl", "privileged", "yes", "yes"),
    ("vzctl", "privileged", "no", "no"),
    ("prlctl", "devnodes", "net/tun:rw", "net/tun:rw"),
    ("vzctl", "devnodes", "fuse:rw", "fuse:rw"),
    ("vzctl", "devices", "c:10:229:rw", "c:10:229:rw"),
    ("vzctl", "pci_add", "00:1f.2", "00:1f.2"),
    ("vzctl", "pci_del", "all", None),
]
ZERO = "00000000-0000-0000-0000-000000000000"
# (dialect, scope, option, text, the attribute of the interface or disk, its value)
SCOPED = [
    ("both", "netif", "ipadd", "10.0.0.1", "ip", (("10.0.0.1", ""),)),
    ("both", "netif", "ipdel", "all", "ip", ()),
    ("both", "netif", "gw", "10.0.0.254", "gw", "10.0.0.254"),
    ("both", "netif", "gw6", "", "gw6", ""),
    ("both", "netif", "network", "Bridged", "network", "Bridged"),
    ("prlctl", "netif", "dhcp", "yes", "dhcp", True),
    ("prlctl", "netif", "dhcp6", "yes", "dhcp6", True),
    ("prlctl", "netif", "mac", "auto", "mac", ""),
    ("prlctl", "netif", "ipset", "10.0.0.9", "ip", (("10.0.0.9", ""),)),
    ("prlctl", "netif", "configure", "no", "configure", "none"),
    ("prlctl", "netif", "type", "bridged", "type", "bridge"),
    ("prlctl", "netif", "ipfilter", "off", "ip_filter", False),
    ("prlctl", "netif", "macfilter", "off", "mac_filter", False),
    ("prlctl", "netif", "preventpromisc", "off", "mac_filter", False),
    ("vzctl", "netif", "dhcp", "no", "dhcp", False),
    ("vzctl", "netif", "dhcp6", "yes", "dhcp6", True),
    ("vzctl", "netif", "mac", "00:18:51:00:00:02", "mac", "00:18:51:00:00:02"),
    ("vzctl", "netif", "host_mac", "fe:18:51:00:00:02", "host_mac", "fe:18:51:00:00:02"),
    ("vzctl", "netif", "host-ifname", "veth5", "host_ifname", "veth5"),
    ("vzctl", "netif", "mac_filter", "off", "mac_filter", False),
    ("vzctl", "netif", "ip_filter", "on", "ip_filter", True),
    ("vzctl", "netif", "configure", "all", "configure", "all"),
    ("vzctl", "netif", "nettype", "bridge", "type", "bridge"),
    ("vzctl", "netif", "vporttype", "ovs", "vport", "ovs"),
    ("prlctl", "disk", "size", "10", "size", 10240),
    ("vzctl", "disk", "size", "10M", "size", 10240),
    ("both", "disk", "image", "/a", "image", "/a"),
    ("both", "disk", "device", "/dev/sdb", "device", "/dev/sdb"),
    ("both", "disk", "mnt", "/data", "mnt", "/data"),
    ("both", "disk", "autocompact", "no", "autocompact", False),
    ("both", "disk", "enable", None, "enabled", True),
    ("both", "disk", "disable", None, "enabled", False),
    ("vzctl", "disk", "device-uuid", f"{{{ZERO}}}", "uuid", ZERO),
    ("vzctl", "disk", "storage-url", "rbd://a", "storage_url", "rbd://a"),
    ("vzctl", "disk", "mount_opts", "ro", "mnt_opts", "ro"),
]  # fmt: skip


def test_every_row_has_a_sample_here() -> None:
    assert {row.key for row in PARAMS} == STORED.keys() | COUNTERS.keys()


@pytest.mark.parametrize("row", PARAMS, ids=lambda row: row.key)
def test_row(row) -> None:
    given, stored = (STORED | COUNTERS)[row.key]
    config = Config.parse({row.key: given})
    assert config.is_set(row.field)
    assert config.text() == {row.key: stored}
    assert Config.parse(config.text()) == config
    assert row.help
    assert by_key(row.key) is row
    for alias in row.aliases:
        assert Config.parse({alias: given}).get(row.field) == config.get(row.field)
    if row.excludes:
        assert BY_FIELD[row.excludes].excludes == row.field
    if row.default is not None:
        assert row.kind.parse(row.kind.format(row.default)) == row.default
    section, name = row.field.split(".")
    if section != "other" and hasattr(Config, section):
        view = getattr(config, section)
        if hasattr(type(view), name):
            assert getattr(view, name) == config.get(row.field)
        else:
            assert row.ignored, f"{row.field} is no attribute of its section"


def test_keys_fields_and_option_names_are_unique() -> None:
    keys = [key for row in PARAMS for key in (row.key, *row.aliases)]
    assert len(set(keys)) == len(keys)
    assert len({row.field for row in PARAMS}) == len(PARAMS)
    for dialect in ACTIONS:
        rows = [opt for row in PARAMS for opt in row.options.get(dialect, ())]
        names = [
            (opt.scope, normal(name)) for opt in (*rows, *ACTIONS[dialect]) for name in opt.names
        ]
        assert sorted(x for x in names if names.count(x) > 1) == []
        shorts = [(opt.scope, opt.short) for _row, opt in options(dialect) if opt.short]
        assert len(set(shorts)) == len(shorts)


@pytest.mark.parametrize(("dialect", "name", "text", "stored"), OPTIONS)
def test_option(dialect: str, name: str, text: str, stored: str | None) -> None:
    row, option = by_option(dialect, name)
    assert row is not None
    assert not option.ignored
    empty = Config.parse({})
    changed = empty.changed(changes(dialect, name, text, empty))
    assert changed.text().get(row.key) == stored


@pytest.mark.parametrize(("dialect", "scope", "name", "text", "attribute", "value"), SCOPED)
def test_scoped_option(dialect, scope, name, text, attribute, value) -> None:
    old = NetIf("eth0") if scope == "netif" else DiskEntry()
    for tool in ("prlctl", "vzctl") if dialect == "both" else (dialect,):
        row, option = by_option(tool, name, scope)
        assert row is not None
        assert option.scope == scope
        assert getattr(option.value(row.kind, old, text), attribute) == value


def test_every_option_of_a_row_is_exercised_here() -> None:
    done = {(dialect, "", normal(name)) for dialect, name, _, _ in OPTIONS}
    # Read together by operations/netdevice.py; test_traffic.py has them.
    done |= {("prlctl", "netif", name) for name in ("fw", "fw-policy", "fw-direction", "fw-rule")}
    for dialect, scope, name, *_ in SCOPED:
        tools = ("prlctl", "vzctl") if dialect == "both" else (dialect,)
        done |= {(tool, scope, normal(name)) for tool in tools}
    for dialect in ACTIONS:
        for row, option in options(dialect):
            names = {(dialect, option.scope, normal(name)) for name in option.names}
            assert row is None or option.ignored or names & done, f"{dialect} --{option.name}"


@pytest.mark.parametrize("dialect", ["prlctl", "vzctl"])
def test_ignored_options_change_nothing_and_say_why(dialect: str) -> None:
    ignored = [x for _row, x in options(dialect) if x.ignored and not x.scope]
    assert ignored
    for option in ignored:
        assert changes(dialect, option.name, "1", Config.parse({})) == {}


def test_cpulimit_in_mhz_goes_to_the_other_parameter() -> None:
    config = Config.parse({"CPULIMIT": "50"})
    config = config.changed(changes("prlctl", "cpulimit", "1500mhz", config))
    assert config.text() == {"CPULIMIT_MHZ": "1500"}
    config = config.changed(changes("vzctl", "cpulimit", "25%", config))
    assert config.text() == {"CPULIMIT": "25"}


def test_a_list_that_is_given_in_parts_is_one_list() -> None:
    config = Config.parse({"NAMESERVER": "9.9.9.9"})
    config = config.changed(changes("vzctl", "nameserver", "8.8.8.8", config))
    config = config.changed(changes("vzctl", "nameserver", "1.1.1.1", config, again=True))
    assert config.text() == {"NAMESERVER": "8.8.8.8 1.1.1.1"}


def test_lists_grow_and_shrink() -> None:
    config = Config.parse({"IP_ADDRESS": "10.0.0.1"})
    config = config.changed(changes("vzctl", "ipadd", "10.0.0.2/24", config))
    config = config.changed(changes("vzctl", "ipdel", "10.0.0.1", config))
    assert config.text() == {"IP_ADDRESS": "10.0.0.2/24"}
    config = config.changed(changes("prlctl", "features", "nfs:on", config))
    config = config.changed(changes("prlctl", "features", "nfs:off,sit:on", config))
    assert config.text()["FEATURES"] == "nfs:off sit:on"


@pytest.mark.parametrize(
    ("dialect", "name", "text", "words"),
    [
        ("prlctl", "cpuunits", "7", ("--cpuunits", "7", "8 to 500000")),
        ("prlctl", "cpuunits", "0", ("--cpuunits", "8 to 500000")),
        ("prlctl", "memsize", "0", ("--memsize", "0")),
        ("prlctl", "memsize", "1X", ("--memsize", "1X", "B K M G T")),
        ("vzctl", "onboot", "perhaps", ("--onboot", "perhaps", "auto")),
        ("prlctl", "onboot", "start-app", ("--autostart", "desktop")),
        ("vzctl", "ipadd", "10.0.0", ("--ipadd", "10.0.0")),
        ("vzctl", "ipdel", "10.0.0.1", ("--ipdel", "not there")),
        ("vzctl", "features", "wings:on", ("--features", "wings", "nfs")),
        ("prlctl", "memquota", "5", ("--memquota", "gone")),
        ("prlctl", "userpasswd", "topsecret", ("--userpasswd", "USER:PASSWORD")),
        ("vzctl", "cpulimit", "much", ("--cpulimit", "much", "MHz")),
        ("vzctl", "cpus", None, ("--cpus", "needs a value")),
        ("vzctl", "setmode", "later", ("--setmode", "restart")),
        ("vzctl", "name", "a/b", ("--name", "a/b")),
    ],
)
def test_bad_values_name_option_and_value(dialect, name, text, words) -> None:
    with pytest.raises(BadValue) as raised:
        changes(dialect, name, text, Config.parse({}))
    for word in words:
        assert word.lower() in raised.value.message.lower()
    assert "topsecret" not in raised.value.message


def test_unknown_and_misplaced_options() -> None:
    with pytest.raises(UsageError, match="no option --wings"):
        by_option("vzctl", "--wings")
    with pytest.raises(UsageError, match="interface"):
        by_option("vzctl", "gw")
    assert by_option("vzctl", "cpus", "netif")[1].name == "cpus"


def test_machine_options_are_marked() -> None:
    assert by_option("prlctl", "efi-boot")[1].kinds == {Kind.VM}
    assert Kind.VM not in by_option("prlctl", "features")[1].kinds
