"""Which file system a new disk gets."""

from __future__ import annotations

from pyvz.errors import BadValue, Unsupported
from pyvz.linux import filesystem


def default() -> str:
    """Return the file system of new disks: ext4, or xfs where ext4 cannot grow while mounted."""
    return "ext4" if filesystem.can_grow_ext4_online() else "xfs"


def kind(wanted: str | None, size: int) -> str:
    """Return the file system for a new disk; raises Unsupported, BadValue (too small for it)."""
    chosen = wanted or default()
    if chosen not in filesystem.TYPES:
        raise Unsupported(
            f"A disk cannot have the file system '{chosen}'",
            hint=f"Known: {', '.join(filesystem.TYPES)}.",
        )
    if wanted is None and size < filesystem.MINIMUM[chosen]:
        chosen = "ext4"  # a small disk; it grows only while it is not mounted
    if size < filesystem.MINIMUM[chosen]:
        least = filesystem.MINIMUM[chosen] >> 20
        raise BadValue(f"A disk with {chosen} needs at least {least} MiB")
    return chosen
