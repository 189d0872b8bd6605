"""Create and clone virtual machines: homes with images and a vm.conf."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pyvz.errors import BadValue, UsageError
from pyvz.model import params
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar import Pair
from pyvz.model.grammar_machine import Drive
from pyvz.model.secret import Secret
from pyvz.model.task import Progress
from pyvz.operations import home, machineimport, machinekeys, machineoptions
from pyvz.operations.machineimport import Imported
from pyvz.operations.node import Node
from pyvz.units import KIB, MIB, PAGE_SIZE
from pyvz.vm import image

log = logging.getLogger(__name__)

DISK = "harddisk.hdd"  # as the original calls it; a qcow2 image
DISK_SIZE = 64 << 20  # KiB: the original's 64 GiB, of which only what is used is taken
CPUS = 2
MEMORY = 1024  # MiB
CHIPSET = "chipset"  # an option of new machines only: no saved state fits another board

Options = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """What is wanted.  sample: a configuration sample.  disk: make hdd0.

    template: name and golden image of the template that hdd0 is a copy of.
    imported: a machine from elsewhere, whose disks it gets.
    """

    options: Options = ()
    dialect: str = "prlctl"
    sample: str | None = None
    disk: bool = True
    template: tuple[str, Path] | None = None
    imported: Imported | None = None


def parent_of(node: Node) -> Path:
    """Return where the homes of virtual machines are."""
    return node.paths.vz / "vmprivate"


def create(node: Node, env: Environment, wanted: Machine, progress: Progress) -> Environment:
    """Make a virtual machine with an empty disk; the ids are reserved by the caller.

    Raises BadValue, PrivateExists, NotFound (sample), NoSpace, Unsupported: nothing is left then.
    """
    with node.lease(env, "create"):
        home.check_place(node, env.home)
        conf = configuration(node, env, wanted)
        with home.born(node, env, conf, "create") as staging:
            furnish(node, staging)
            if wanted.imported is not None:
                machineimport.fill(wanted.imported, staging, progress)
            elif wanted.disk:
                progress.stage("Making the disk")
                _make_disk(staging / DISK, wanted, _key(node, conf), progress)
            progress.check()
    node.publish("ve-create", env)
    return env


def _key(node: Node, conf: ConfFile) -> Secret | None:
    """Return the key of hdd0, None when it is not to be encrypted."""
    drives = Config.parse(conf.values()).machine.drives
    return next((machinekeys.of(node, drive) for drive in drives if drive.name == "hdd0"), None)


def _make_disk(path: Path, wanted: Machine, key: Secret | None, progress: Progress) -> None:
    """Make hdd0: empty, or a copy of the template's image, which the guest grows into."""
    if wanted.template is None:
        image.create(path, DISK_SIZE * KIB, key=key)
        return
    if key is None:
        image.copy(wanted.template[1], path, progress)
    else:
        image.convert(wanted.template[1], path, "qcow2", progress, keys=(None, key))
    image.resize(path, DISK_SIZE * KIB, "qcow2", key=key)


def furnish(node: Node, directory: Path) -> None:
    """Make what every home of a machine has beside its images."""
    home.take_ownership(node, directory)
    furnish_missing(directory)


def furnish_missing(directory: Path) -> None:
    """Make what every home of a machine has, where it is not there."""
    (directory / "dump").mkdir(mode=0o700, exist_ok=True)


def configuration(node: Node, env: Environment, wanted: Machine) -> ConfFile:
    """Return the vm.conf of a new machine: defaults or sample, options, devices."""
    conf = ConfFile() if wanted.sample is None else node.registry.sample(wanted.sample).copy()
    old = Config.parse(conf.values())
    drives = [Drive("cdrom0", position=1, format="raw")]
    told: dict[str, object] = {}
    if wanted.imported is not None:
        told = machineimport.settings(wanted.imported)
        drives = [*machineimport.drives(wanted.imported), drives[0]._replace(position=-1)]
    elif wanted.disk:
        drives.insert(0, Drive("hdd0", size=DISK_SIZE, image=DISK))
    pages = MEMORY * MIB // PAGE_SIZE
    base = old.changed(
        {
            "machine.drives": tuple(drives),
            "cpu.cpus": old.cpu.cpus or CPUS,
            "memory.physpages": old.memory.physpages or Pair(pages, pages),
        }
        | told
    )
    chipsets = [text or "" for name, text in wanted.options if name == CHIPSET]
    if chipsets:
        base = base.changed({"machine.chipset": _chipset(chipsets[-1])})
    options = tuple(pair for pair in wanted.options if pair[0] != CHIPSET)
    made = machineoptions.plan(base, wanted.dialect, options)
    if made.password is not None or made.sample is not None:
        raise UsageError("--userpasswd and --applyconfig cannot be given when it is created")
    for key, value in made.config.differences(old).items():
        conf.set(key, value)
    conf.set("VE_PRIVATE", str(env.home))
    if wanted.template is not None:
        name = wanted.template[0]
        conf.set("OSTEMPLATE", f".{name}")
        conf.set("DISTRIBUTION", name.partition("-")[0])
    return conf


def _chipset(text: str) -> str:
    try:
        return str(params.by_field("machine.chipset").kind.parse(text))
    except BadValue as error:
        raise BadValue(f"--chipset: {error.message}") from error


def identity(node: Node, uuid: str, name: str, directory: str | None) -> Environment:
    """Return who a new machine will be."""
    place = parent_of(node) / uuid if directory is None else Path(directory)
    return Environment(uuid, uuid, name, Kind.VM, place)
