"""Merging of equal pages (KSM) of containers."""

from __future__ import annotations

from pyvz.model.config import Config
from pyvz.model.switch import switched
from pyvz.operations.node import Node

FEATURE = "ksm"


def wanted(node: Node, config: Config) -> bool:
    """Whether a container's equal pages are to be merged: as its FEATURES say, else vz.conf."""
    return bool(node.features.ksm) and switched(config, FEATURE, default=node.config().ksm)
