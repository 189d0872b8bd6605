"""Templates of virtual machines: an image that boots, made once by the node from an EZ template.

<template>/vm/<name>.qcow2      the golden image; a new machine's disk is a copy of it
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pyvz.errors import NoSpace
from pyvz.model.task import Progress
from pyvz.operations import template as templates
from pyvz.operations.node import Node
from pyvz.template import machinetree
from pyvz.template.filelock import lock
from pyvz.vm import bootdisk, image

log = logging.getLogger(__name__)

SIZE = 3 << 30  # bytes of the golden image; the guest's first boot grows into its disk
NEEDED = 4 << 30  # bytes that a build needs for a while


def path_of(node: Node, name: str) -> Path:
    """Return where the golden image of a template is."""
    return node.paths.template / "vm" / f"{name}.qcow2"


def ensure(node: Node, ostemplate: str, progress: Progress) -> tuple[str, Path]:
    """Return the template's name and golden image, made when there is none yet.

    Raises TemplateNotFound, TemplateError, Unsupported, NoSpace, Cancelled.
    """
    found = templates.find_template(node, ostemplate)
    final = path_of(node, found.name)
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock(final, progress):
        if final.exists():
            return found.name, final
        free = shutil.disk_usage(final.parent).free
        if free < NEEDED:
            raise NoSpace(
                f"There is not enough space in {final.parent} to make a template",
                details=f"{NEEDED >> 20} MiB are needed, {free >> 20} MiB are free.",
            )
        work = final.with_name(f".{found.name}.new")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        try:
            tree = work / "root"
            tree.mkdir(mode=0o755)
            machinetree.build(node.paths, found, tree, progress)
            loader = machinetree.core_image(tree)
            raw = work / "disk.raw"
            bootdisk.assemble(tree, raw, SIZE, loader, progress)
            progress.stage("Making the image")
            image.convert(raw, work / "disk.qcow2", "raw", progress)
            (work / "disk.qcow2").rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    log.info("the template %s of virtual machines was made", found.name)
    return found.name, final
