"""The hardware of a virtual machine as far as its configuration decides about it, and a saved state
of it must find it again.
"""

from __future__ import annotations

from typing import Final

from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.grammar_machine import Drive, Drives
from pyvz.vm.spec import Layout

DRIVES: Final = "machine.drives"
PLAIN: Final = (
    *("machine.video", "machine.efi", "machine.tpm", "machine.sockets", "machine.nested"),
    *("machine.cpu_model", "machine.cpu_features", "machine.serials", "machine.sound"),
    *("machine.usb", "machine.cloud_init"),
)
FIELDS: Final = frozenset((*PLAIN, DRIVES))
_OF_DRIVE: Final = ("iface", "position", "subtype", "serial", "autocompact")


def applied(config: Config, made: Layout) -> Config:
    """Return the configuration of the hardware that a saved state was made on.

    Of drives it is only which ones there are and where: their images may have moved meanwhile.
    """
    told = dict(made.settings)
    values: dict[str, object] = {}
    for field in PLAIN:
        row = params.by_field(field)
        if row.key in told:
            text = told[row.key]
            values[field] = row.kind.parse(text) if text else None
    key = params.by_field(DRIVES).key
    if key in told:
        had = {drive.name: drive for drive in Drives().parse(told[key])}
        drives = config.machine.drives
        values[DRIVES] = tuple(on_bus(x, had[x.name]) for x in drives if x.name in had)
    return config.changed(values)


def on_bus(drive: Drive, known: Drive) -> Drive:
    """Return a drive where KNOWN is."""
    return drive._replace(**{name: getattr(known, name) for name in _OF_DRIVE})
