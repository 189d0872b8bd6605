"""Building a cache: packages into a staging folder, settings, archive, commit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyvz.errors import CacheExists, CommandFailed, NoSpace, TemplateError, VZError
from pyvz.linux import run
from pyvz.linux.archive import pack
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.task import Progress
from pyvz.store.paths import Paths
from pyvz.template import base, cache, guest, settings
from pyvz.template.cache import CacheFile
from pyvz.template.filelock import lock
from pyvz.template.metadata import OsTemplate, machine

FULL = 8 << 20  # bytes; with less than that left a failure is put down to the full disk
SCRIPT_TIMEOUT = 600.0


def build(
    paths: Paths, template: OsTemplate, progress: Progress, *, replace: bool, exist_ok: bool = False
) -> CacheFile:
    """Build the cache of TEMPLATE and return it.

    replace: an existing one is built anew.  exist_ok: an existing one is what was wanted (also
    one that another build finished while we waited for it).
    Raises CacheExists, TemplateError, NoSpace, CommandFailed, Cancelled; nothing is left then.
    """
    wanted = settings.load(paths)
    final = cache.path_of(paths, template.name, wanted.compression)
    with lock(final, progress):
        existing = cache.find(paths, template.name)
        if existing is not None and exist_ok:
            return existing
        if existing is not None and not replace:
            raise CacheExists(
                f"the cache of {template.name} is there already: {existing.path}",
                hint="'vzpkg update cache' brings it up to date.",
            )
        _check_machine(template)
        recipe = settings.recipe(template, wanted)
        manager = base.load(template.package_manager)
        with cache.staging(paths, template.name) as stage:
            try:
                _fill(stage, template, recipe, manager, progress)
                archive = stage / final.name
                progress.stage("Packing the cache")
                pack(stage / "root", archive, progress)
            except (VZError, OSError) as error:
                raise _explained(error, stage, template) from error
            cache.commit(archive, final)
        if existing is not None and existing.path != final:
            existing.path.unlink(missing_ok=True)  # of another compression
    return CacheFile(final, template.name)


def _fill(
    stage: Path,
    template: OsTemplate,
    recipe: base.Recipe,
    manager: base.PackageManager,
    progress: Progress,
) -> None:
    root = stage / "root"
    root.mkdir(mode=0o755)
    _script(template, "pre-cache", root, progress)
    manager.build(root, recipe, progress)
    progress.stage("Preparing the tree")
    with GuestRoot.open(root) as tree:
        guest.prepare(tree, template.distribution)
    _script(template, "post-cache", root, progress)


def _script(template: OsTemplate, name: str, root: Path, progress: Progress) -> None:
    """Run a script of the template on the node, as the original does (VE_ROOT names the tree)."""
    script = template.own.script(name)
    if script is None:
        return
    progress.stage(f"Running {name}")
    run.run(
        [script],
        env={"VE_ROOT": os.fspath(root), **template.base.environment()},
        timeout=SCRIPT_TIMEOUT,
        poll=progress.check,
    )


def _check_machine(template: OsTemplate) -> None:
    if template.arch != machine():
        raise TemplateError(f"{template.name} is for {template.arch}, and this node is {machine()}")


def _explained(error: VZError | OSError, stage: Path, template: OsTemplate) -> VZError:
    """Return the error a user can do something with."""
    if isinstance(error, NoSpace) or getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT}:
        return _no_space(stage, template)
    if isinstance(error, OSError):
        return TemplateError(f"{template.name}: {error.strerror}: {error.filename}")
    if isinstance(error, CommandFailed):
        status = os.statvfs(stage)
        if status.f_bavail * status.f_frsize < FULL or not status.f_favail:
            return _no_space(stage, template)
        return TemplateError(
            f"the cache of {template.name} could not be built: {error.message}",
            details=error.details,
        )
    return error


def _no_space(stage: Path, template: OsTemplate) -> NoSpace:
    return NoSpace(
        f"the file system of {stage.parent} is full: the cache of {template.name} was not built",
        hint="A build needs about 1 GiB.",
    )
