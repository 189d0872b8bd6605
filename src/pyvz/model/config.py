"""Config: the parameters of one container as typed values.

A Config is immutable.  ``config.cpu.units`` reads one value: what the container's own file says,
else what vz.conf gives as default, else the default of the table.  Its sections hold nothing; they
are views, so that reading 200 files for ``prlctl list`` parses text and builds nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar, overload

from pyvz.errors import BadValue, ConfigError
from pyvz.model import params_base as base
from pyvz.model import params_cpu as cpu
from pyvz.model import params_disk as disk
from pyvz.model import params_machine as machine
from pyvz.model import params_memory as memory
from pyvz.model import params_net as net
from pyvz.model import params_security as security
from pyvz.model.param import Param
from pyvz.model.params import BY_FIELD, BY_KEY, PARAMS

T = TypeVar("T")
_DEFAULTS: dict[str, Any] = {row.field: row.default for row in PARAMS}


@lru_cache(maxsize=8192)
def _typed(key: str, text: str) -> Any:  # noqa: ANN401
    """Return the value of a stored text; containers of one sample share most of theirs."""
    return BY_KEY[key].kind.parse(text)


class _Section:
    """A view of a Config."""

    __slots__ = ("_config",)

    def __init__(self, config: Config) -> None:
        self._config = config


class _Value(Generic[T]):
    """A value that always counts: the row has a default."""

    __slots__ = ("field",)

    def __init__(self, row: Param[T]) -> None:
        self.field = row.field

    @overload
    def __get__(self, section: None, owner: type[_Section]) -> _Value[T]: ...
    @overload
    def __get__(self, section: _Section, owner: type[_Section]) -> T: ...
    def __get__(self, section: _Section | None, owner: type[_Section]) -> T | _Value[T]:
        if section is None:
            return self
        value: T = section._config.get(self.field)
        return value


class _Maybe(_Value[T | None]):
    """A value that is None when nobody set it."""

    __slots__ = ()

    def __init__(self, row: Param[T]) -> None:
        self.field = row.field


class Identity(_Section):
    """Who it is and where it lives."""

    __slots__ = ()
    veid = _Maybe(base.VEID)
    uuid = _Maybe(base.UUID)
    name = _Maybe(base.NAME)
    description = _Value(base.DESCRIPTION)
    root = _Maybe(base.ROOT)
    private = _Maybe(base.PRIVATE)
    type = _Value(base.TYPE)
    version = _Maybe(base.VERSION)
    veformat = _Maybe(base.VEFORMAT)
    platform = _Maybe(base.PLATFORM)


class Template(_Section):
    """What it was made from."""

    __slots__ = ()
    os = _Value(base.OSTEMPLATE)
    applications = _Value(base.TEMPLATES_INSTALLED)
    directory = _Maybe(base.TEMPLATE)
    technologies = _Value(base.TECHNOLOGIES)
    distribution = _Value(base.DISTRIBUTION)
    sample = _Value(base.ORIGIN_SAMPLE)
    customized = _Value(base.CUSTOMIZED)
    configfile = _Maybe(base.CONFIGFILE)


class Boot(_Section):
    """When and how it starts and stops."""

    __slots__ = ()
    disabled = _Value(base.DISABLED)
    onboot = _Value(base.ONBOOT)
    order = _Maybe(base.BOOTORDER)
    autostop = _Maybe(base.AUTOSTOP)
    osrelease = _Value(base.OSRELEASE)
    environment = _Value(base.ENVIRONMENT)
    allow_reboot = _Value(base.ALLOW_REBOOT)
    ha_enable = _Value(base.HA_ENABLE)
    ha_prio = _Value(base.HA_PRIO)


class Cpu(_Section):
    """CPU time and CPUs."""

    __slots__ = ()
    units = _Value(cpu.UNITS)
    weight = _Maybe(cpu.WEIGHT)
    limit = _Value(cpu.LIMIT)
    limit_mhz = _Value(cpu.LIMIT_MHZ)
    cpus = _Value(cpu.CPUS)
    mask = _Value(cpu.MASK)
    nodemask = _Value(cpu.NODEMASK)
    burst_limit = _Maybe(cpu.BURST_LIMIT)
    burst_average = _Maybe(cpu.BURST_AVERAGE)


class Io(_Section):
    """Disk traffic."""

    __slots__ = ()
    priority = _Value(cpu.IO_PRIORITY)
    limit = _Value(cpu.IO_LIMIT)
    operations = _Value(cpu.IO_OPERATIONS)


class Memory(_Section):
    """Memory, swap, processes and the old beancounters (pages, bytes or counts, as stored)."""

    __slots__ = ()
    physpages = _Maybe(memory.PHYSPAGES)
    swappages = _Maybe(memory.SWAPPAGES)
    overcommit = _Maybe(memory.OVERCOMMIT)
    guarantee = _Maybe(memory.GUARANTEE)
    guarantee_bytes = _Maybe(memory.GUARANTEE_BYTES)
    cache_isolation = _Value(memory.CACHE_ISOLATION)
    subgroups = _Maybe(memory.SUBGROUPS)
    meminfo = _Maybe(memory.MEMINFO)
    numproc = _Maybe(memory.NUMPROC)
    kmemsize = _Maybe(memory.KMEMSIZE)
    lockedpages = _Maybe(memory.LOCKEDPAGES)
    privvmpages = _Maybe(memory.PRIVVMPAGES)
    shmpages = _Maybe(memory.SHMPAGES)
    vmguarpages = _Maybe(memory.VMGUARPAGES)
    numfile = _Maybe(memory.NUMFILE)
    numflock = _Maybe(memory.NUMFLOCK)
    numpty = _Maybe(memory.NUMPTY)
    numsiginfo = _Maybe(memory.NUMSIGINFO)
    numiptent = _Maybe(memory.NUMIPTENT)
    avnumproc = _Maybe(memory.AVNUMPROC)
    numnetif = _Maybe(memory.NUMNETIF)


class Disk(_Section):
    """Disks (sizes in KiB, as stored)."""

    __slots__ = ()
    space = _Maybe(disk.SPACE)
    inodes = _Maybe(disk.INODES)
    quota_time = _Value(disk.QUOTA_TIME)
    quota_users = _Value(disk.QUOTA_USERS)
    quota = _Value(disk.QUOTA)
    journaled_quota = _Maybe(disk.JOURNALED_QUOTA)
    disks = _Value(disk.DISKS)
    bindmounts = _Value(disk.BINDMOUNT)
    layout = _Value(disk.LAYOUT)
    fs_type = _Value(disk.FSTYPE)
    image_format = _Value(disk.IMAGE_FORMAT)
    autocompact = _Value(disk.AUTOCOMPACT)
    root_disk = _Value(disk.ROOT_DISK)
    noatime = _Value(disk.NOATIME)
    mount_options = _Value(disk.MOUNT_OPTS)


class Network(_Section):
    """Addresses, interfaces and names."""

    __slots__ = ()
    ip = _Value(net.IP_ADDRESS)
    external_ip = _Value(net.EXT_IP_ADDRESS)
    interfaces = _Value(net.NETIF)
    devices = _Value(net.NETDEV)
    hostname = _Maybe(net.HOSTNAME)
    nameservers = _Value(net.NAMESERVER)
    searchdomains = _Value(net.SEARCHDOMAIN)
    ip_only = _Value(net.APPLY_IPONLY)
    receive_steering = _Maybe(net.USE_NET_RPS)
    rates = _Value(net.RATE)
    rate_bound = _Value(net.RATEBOUND)
    netfilter = _Value(net.NETFILTER)
    firewalls = _Value(net.FIREWALL)
    iptables = _Value(net.IPTABLES)


class Devices(_Section):
    """Devices of the node that it may use."""

    __slots__ = ()
    nodes = _Value(security.DEVNODES)
    numbers = _Value(security.DEVICES)
    pci = _Value(security.PCI_DEVICES)


class Security(_Section):
    """Privileges."""

    __slots__ = ()
    features = _Maybe(security.FEATURES)
    capability = _Maybe(security.CAPABILITY)
    privileged = _Value(security.PRIVILEGED)


class Machine(_Section):
    """What only a virtual machine has."""

    __slots__ = ()
    drives = _Value(machine.DRIVES)
    serials = _Value(machine.SERIALS)
    usb = _Value(machine.USB)
    sound = _Value(machine.SOUND)
    usb_devices = _Value(machine.USB_DEVICES)
    pci_devices = _Value(machine.PCI_DEVICES)
    boot = _Value(machine.BOOT)
    sockets = _Value(machine.SOCKETS)
    cpu_hotplug = _Value(machine.CPU_HOTPLUG)
    mem_hotplug = _Value(machine.MEM_HOTPLUG)
    video = _Value(machine.VIDEO)
    efi = _Value(machine.EFI)
    secure_boot = _Value(machine.SECURE_BOOT)
    tpm = _Value(machine.TPM)
    hugepages = _Value(machine.HUGEPAGES)
    memory_lock = _Value(machine.MEMORY_LOCK)
    boot_menu = _Value(machine.BOOT_MENU)
    chipset = _Value(machine.CHIPSET)
    type = _Value(machine.MACHINE_TYPE)
    on_crash = _Value(machine.ON_CRASH)
    nested = _Value(machine.NESTED)
    cpu_model = _Value(machine.CPU_MODEL)
    cpu_features = _Value(machine.CPU_FEATURES)
    channels = _Value(machine.CHANNELS)
    ssh_keys = _Value(machine.SSH_KEYS)
    cloud_init = _Value(machine.CLOUD_INIT)
    vnc_mode = _Value(machine.VNC_MODE)
    vnc_port = _Value(machine.VNC_PORT)
    vnc_address = _Value(machine.VNC_ADDRESS)
    vnc_open = _Value(machine.VNC_OPEN)
    autostart_delay = _Value(machine.AUTOSTART_DELAY)
    tools_update = _Value(machine.TOOLS_UPDATE)


class Config:
    """The configuration of one container; immutable."""

    __slots__ = ("_given", "_inherited", "problems", "unknown")

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        inherited: Mapping[str, Any] | None = None,
        unknown: Mapping[str, str] | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        """Make one of typed values by field.

        inherited: what vz.conf says (see inheritable).  unknown: keys that the table does not have.
        problems: what could not be understood (only from a lenient parse).
        """
        self._given = given
        self._inherited = inherited or {}
        self.unknown: Mapping[str, str] = unknown or {}
        self.problems = problems

    @classmethod
    def parse(
        cls,
        values: Mapping[str, str],
        source: str = "",
        *,
        inherited: Mapping[str, Any] | None = None,
        lenient: bool = False,
    ) -> Config:
        """Return the configuration that VALUES (of a ConfFile) mean.

        source: the file's name, for messages.  lenient: a value that cannot be understood counts as
        not set and is told in `problems`; otherwise it raises ConfigError, naming source and key.
        """
        given: dict[str, Any] = {}
        unknown: dict[str, str] = {}
        problems: list[str] = []
        for key, text in values.items():
            row = BY_KEY.get(key)
            if row is None:
                unknown[key] = text
                continue
            if not text or (row.key != key and row.key in values):
                continue
            try:
                given[row.field] = _typed(key, text)
            except BadValue as error:
                message = f"{source}: {key}: {error.message}" if source else f"{key}: {error}"
                if not lenient:
                    raise ConfigError(message, hint=error.hint) from error
                problems.append(message)
        return cls(given, inherited=inherited, unknown=unknown, problems=tuple(problems))

    def get(self, field: str) -> Any:  # noqa: ANN401  (the field decides; sections are typed)
        """Return the value of FIELD ("cpu.units"), a default when it is not set."""
        given = self._given
        if field in given:
            return given[field]
        inherited = self._inherited
        return inherited[field] if field in inherited else _DEFAULTS[field]

    def is_set(self, field: str) -> bool:
        """Whether the container's own file says something about FIELD."""
        return field in self._given

    def changed(self, values: Mapping[str, Any]) -> Config:
        """Return a Config with VALUES ({field: value}) put over this one; None unsets a field.

        Setting a field takes away the one it excludes (CPULIMIT and CPULIMIT_MHZ).
        """
        given = dict(self._given)
        for field, value in values.items():
            row = BY_FIELD[field]
            if row.excludes:
                given.pop(row.excludes, None)
            if value is None and row.field != memory.GUARANTEE.field:
                given.pop(field, None)
            else:
                given[field] = value
        return Config(
            given, inherited=self._inherited, unknown=self.unknown, problems=self.problems
        )

    def with_problems(self, problems: tuple[str, ...]) -> Config:
        """Return the same values with PROBLEMS told before its own."""
        return Config(
            self._given,
            inherited=self._inherited,
            unknown=self.unknown,
            problems=problems + self.problems,
        )

    def text(self) -> dict[str, str]:
        """Return {key: stored text} of what is set; empty lists and texts are not stored."""
        pairs = ((BY_FIELD[field], value) for field, value in self._given.items())
        texts = {row.key: row.kind.format(value) for row, value in pairs}
        return {key: text for key, text in texts.items() if text}

    def differences(self, old: Config) -> dict[str, str | None]:
        """Return {key: new stored text, or None to drop it} of what differs from OLD.

        To be given to ConfFile.set(); aliases of a changed key are dropped as well.
        """
        fields = [*self._given, *(field for field in old._given if field not in self._given)]
        changed: dict[str, str | None] = {}
        mine = self.text()
        for field in fields:
            if field in self._given and field in old._given and self.get(field) == old.get(field):
                continue
            row = BY_FIELD[field]
            changed |= dict.fromkeys(row.aliases)
            changed[row.key] = mine.get(row.key)
        return changed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._given == other._given

    def __hash__(self) -> int:
        return hash(frozenset(self._given.items()))

    @property
    def identity(self) -> Identity:
        """Who it is and where it lives."""
        return Identity(self)

    @property
    def template(self) -> Template:
        """What it was made from."""
        return Template(self)

    @property
    def boot(self) -> Boot:
        """When and how it starts and stops."""
        return Boot(self)

    @property
    def cpu(self) -> Cpu:
        """CPU time and CPUs."""
        return Cpu(self)

    @property
    def io(self) -> Io:
        """Disk traffic."""
        return Io(self)

    @property
    def memory(self) -> Memory:
        """Memory, swap, processes."""
        return Memory(self)

    @property
    def disk(self) -> Disk:
        """Disks."""
        return Disk(self)

    @property
    def network(self) -> Network:
        """Addresses, interfaces and names."""
        return Network(self)

    @property
    def devices(self) -> Devices:
        """Devices of the node that it may use."""
        return Devices(self)

    @property
    def security(self) -> Security:
        """Privileges."""
        return Security(self)

    @property
    def machine(self) -> Machine:
        """What only a virtual machine has."""
        return Machine(self)


def inheritable(values: Mapping[str, str], source: str = "vz.conf") -> dict[str, Any]:
    """Return {field: value} of the defaults that vz.conf gives to every container.

    What belongs to one container only is left out (config.md section 2).  Raises ConfigError.
    """
    shared = {
        key: text for key, text in values.items() if (row := BY_KEY.get(key)) and not row.local
    }
    return dict(Config.parse(shared, source)._given)
