"""Features of a container that have a default of the node: FEATURES, else vz.conf."""

from __future__ import annotations

from pyvz.model.config import Config


def switched(config: Config, name: str, *, default: bool) -> bool:
    """Whether the feature NAME is on: as the container's FEATURES say, else as the node does."""
    flags = config.security.features
    if flags is None or name not in (*flags.on, *flags.off):
        return default
    return name in flags.on
