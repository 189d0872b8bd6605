"""EZ templates: caches, and packages in containers.

Every function takes the node; those that change a container take its lease.  Packages are
downloaded by the node (template/apt.py says how) and installed by a program of the container,
inside; nothing of a container ever runs on the node.
"""

from __future__ import annotations

from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.template import build, cache, shipped
from pyvz.template.cache import CacheFile
from pyvz.template.metadata import find_os


def install_shipped(node: Node) -> list[str]:
    """Copy the metadata that pyvz ships into the template area where they are missing.

    Idempotent; a file that the administrator changed or removed stays so.  Returns what was
    written (paths below the template area).
    """
    return shipped.install(shipped.source(), cache.area(node.paths), node.paths.lib)


def ensure_cache(node: Node, ostemplate: str, progress: Progress) -> CacheFile:
    """Return the verified cache of an OS template, building it when there is none.

    OSTEMPLATE may have a leading dot and may lack the architecture.  Raises TemplateNotFound (also
    for a name with no template, unless a cache of that name exists), TemplateError, NoSpace,
    Cancelled.
    """
    found = cache.find(node.paths, ostemplate)
    if found is None:
        install_shipped(node)
        template = find_os(cache.area(node.paths), ostemplate)
        found = build.build(node.paths, template, progress, replace=False, exist_ok=True)
    cache.verify(found, progress)
    return found
