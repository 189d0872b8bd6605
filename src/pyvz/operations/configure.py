"""`set`: plan, check, put in force, save.

The options become values first (options.py).  What can change while the container runs is put in
force; if that fails, what was put in force is taken back and nothing is saved.  The file is
written last, so it never promises what the kernel refused.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import NamedTuple

from pyvz.errors import BadValue, SetError, VZError
from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.config_limits import limits_of
from pyvz.model.environment import Environment
from pyvz.model.limits import Limits
from pyvz.model.param import normal
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import guestsettings, lifecycle, password
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions, Plan, plan
from pyvz.storage import base as storage

log = logging.getLogger(__name__)


class SetResult(NamedTuple):
    """echo: a line per change.  restart_needed: options that wait for the next start.

    warnings: what was accepted and ignored, or not saved.
    """

    echo: tuple[str, ...]
    restart_needed: tuple[str, ...]
    warnings: tuple[str, ...]


def set_options(
    node: Node,
    ref: str,
    dialect: str,
    given: GivenOptions,
    *,
    save: bool = True,
    setmode: str | None = None,
    progress: Progress | None = None,
) -> SetResult:
    """Change a container as the options say.

    dialect: whose options and units they are (prlctl, vzctl).  save: write ve.conf too.
    setmode: "restart" restarts a running container when a change needs it, "ignore" says nothing.
    Raises UsageError, BadValue, Unsupported, SetError, PasswordError: then nothing has changed.
    """
    if setmode not in {None, "restart", "ignore"}:
        raise BadValue("--setmode: give restart or ignore")
    env = node.registry.resolve(ref)
    (progress or NoProgress()).stage("Configuring")
    with node.lease(env, "set"):
        lifecycle.repair(node, env)
        old = node.registry.config(env)
        made = plan(_with_sample(node, old, given), dialect, given, env.kind)
        running = node.status(env) in {Status.RUNNING, Status.PAUSED}
        waiting = _waiting(made) if running and setmode != "ignore" else ()
        with ExitStack() as undo:
            if running:
                _put_in_force(node, env, old, made.config, undo)
            if made.password is not None and running:
                user, secret, crypted = made.password
                password.set_inside(node, env, user, secret, crypted=crypted)
            if save:
                _save(node, env, old, made.config)
            undo.pop_all()
    if made.password is not None and not running:
        # A stopped container is started minimally for it, which takes the lease itself.
        user, secret, crypted = made.password
        password.set_password(node, env.uuid, user, secret, crypted=crypted)
    if waiting and setmode == "restart":
        lifecycle.restart(node, env.uuid)
        waiting = ()
    node.publish("ve-config", env, fields=" ".join(made.fields))
    return SetResult(made.echo, waiting, made.warnings)


def limit_changes(old: Limits, new: Limits) -> Limits:
    """Return `new` with everything that equals `old` left out (None: leave it as it is)."""
    return Limits._make(b if a != b else None for a, b in zip(old, new, strict=True))


def _with_sample(node: Node, config: Config, given: GivenOptions) -> Config:
    """Return the configuration with the sample of --applyconfig under the other options."""
    names = [text for name, text in given if normal(name) == "applyconfig"]
    for name in names:
        sample = Config.parse(node.registry.sample(name or "").values(), f"ve-{name}.conf-sample")
        fields = [row.field for row in params.PARAMS if not row.local and sample.is_set(row.field)]
        config = config.changed({field: sample.get(field) for field in fields})
        config = config.changed({"template.sample": name})
    return config


def _waiting(made: Plan) -> tuple[str, ...]:
    """Return the fields that a running container gets only at its next start."""
    return tuple(field for field in dict.fromkeys(made.fields) if not params.by_field(field).live)


def _put_in_force(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    cpus = os.cpu_count() or 1
    before, after = limits_of(old, cpus=cpus), limits_of(new, cpus=cpus)
    changed = limit_changes(before, after)
    if changed != Limits():
        disks = tuple(storage.find(env.home).devices(env.home))
        back = limit_changes(after, before)
        undo.callback(_put_back, node, env, back, disks)
        try:
            node.cgroups.apply(env.uuid, changed, disks)
        except OSError as error:
            raise SetError(
                f"The kernel refused the new limits of {env.name}: {error.strerror}",
                details=str(error.filename or ""),
            ) from error
    hostname = new.network.hostname
    if hostname and hostname != old.network.hostname:
        guestsettings.set_hostname_live(node, env, hostname)
        if old.network.hostname:
            undo.callback(guestsettings.set_hostname_live, node, env, old.network.hostname)


def _put_back(
    node: Node, env: Environment, limits: Limits, disks: tuple[tuple[int, int], ...]
) -> None:
    try:
        node.cgroups.apply(env.uuid, limits, disks)
    except (OSError, VZError):
        log.exception("%s: the old limits could not be put back", env.name)


def _save(node: Node, env: Environment, old: Config, new: Config) -> None:
    changed = new.differences(old)
    name = new.identity.name
    if name and name != env.name:
        env = node.registry.rename(env, name)
        changed.pop("NAME", None)
    if changed:
        conf = node.registry.conf_file(env)
        for key, text in changed.items():
            conf.set(key, text)
        node.registry.save(env, conf)
