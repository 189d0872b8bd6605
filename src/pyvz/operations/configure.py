"""`set`: plan, check, put in force, save.

The options become values first (options.py).  What can change while the container runs is put in
force; if that fails, what was put in force is taken back and nothing is saved.  The file is
written last, so it never promises what the kernel refused.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import NamedTuple

from pyvz.errors import BadValue, NotEnoughResources, SetError, UsageError, VZError
from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.limits import Limits
from pyvz.model.param import normal
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    cpulimits,
    devicechange,
    disk,
    guestsettings,
    lifecycle,
    machineset,
    memory,
    network,
    password,
    rootmount,
    traffic,
)
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions, Plan
from pyvz.storage import base as storage

log = logging.getLogger(__name__)

# What a running container gets by a file of the guest, at once.
_WRITTEN_INSIDE = frozenset(
    f"network.{name}" for name in ("hostname", "nameservers", "searchdomains", "ip", "interfaces")
)


class SetRequest(NamedTuple):
    """options: (name, value) in the words and units of `dialect` (prlctl, vzctl).

    save: write ve.conf too.  setmode: "restart" restarts a running container when a change needs
    it, "ignore" says nothing of it.
    """

    dialect: str
    options: GivenOptions
    save: bool = True
    setmode: str | None = None


class SetResult(NamedTuple):
    """echo: a line per change.  restart_needed: options that wait for the next start.

    warnings: what was accepted and ignored, or not saved.
    """

    echo: tuple[str, ...]
    restart_needed: tuple[str, ...]
    warnings: tuple[str, ...]


def set_options(
    node: Node, ref: str, request: SetRequest, progress: Progress | None = None
) -> SetResult:
    """Change an environment as the options say.

    Raises UsageError, BadValue, Unsupported, SetError, PasswordError: then nothing has changed.
    """
    if request.setmode not in {None, "restart", "ignore"}:
        raise BadValue("--setmode: give restart or ignore")
    env = node.registry.resolve(ref)
    progress = progress or NoProgress()
    progress.stage("Configuring")
    if env.kind == Kind.VM:
        machineset.check_setmode(request.setmode, save_it=request.save)
        return SetResult(*machineset.set_options(node, env, request.dialect, request.options))
    return _set_container(node, env, request, progress)


def _set_container(
    node: Node, env: Environment, request: SetRequest, progress: Progress
) -> SetResult:
    given, device = disk.split(request.dialect, request.options)
    if device is not None and not request.save:
        raise UsageError("A disk is added, changed or removed with --save only")
    with node.lease(env, "set"):
        lifecycle.repair(node, env)
        old = node.registry.config(env)
        base = _with_sample(node, old, given)
        running = node.status(env) in {Status.RUNNING, Status.PAUSED}
        with disk.changing(node, env, base, device, progress) as changed, ExitStack() as undo:
            made = network.plan_options(node, env, changed.config, request.dialect, given)
            made = made._replace(echo=(*changed.echo, *made.echo))
            warnings = [*made.warnings]
            rootmount.check(env, old, made.config)
            if network.FIELDS.intersection(made.fields) and not running:
                network.check(node, env, old, made.config, undo)
            if memory.FIELDS.intersection(made.fields) and not running:
                memory.check(node, env, made.config)
            if running:
                warnings += _put_in_force(node, env, old, made, undo)
            disk.resize_root(env, old, made.config)
            rootmount.limit_inodes(env, old, made.config)
            if request.save:
                _save(node, env, old, made.config)
            undo.pop_all()
    if made.password is not None and not running:
        # A stopped container is started minimally for it, which takes the lease itself.
        new = made.password
        password.set_password(node, env.uuid, new.user, new.secret, crypted=new.crypted)
    waiting = _waiting(made, request.dialect) if running and request.setmode != "ignore" else ()
    if waiting and request.setmode == "restart":
        lifecycle.restart(node, env.uuid)
        waiting = ()
    if made.config.identity.name not in {None, env.name} and request.save:
        node.publish("ve-rename", env, new_name=str(made.config.identity.name))
    devices = devicechange.told(old, made.config)
    node.publish("ve-config", env, fields=" ".join(made.fields), **devices)
    return SetResult(made.echo, waiting, tuple(warnings))


def limit_changes(old: Limits, new: Limits) -> Limits:
    """Return `new` with everything that equals `old` left out (None: leave it as it is)."""
    changed = Limits._make(b if a != b else None for a, b in zip(old, new, strict=True))
    # A burst belongs to its quota: whoever writes the one writes the other.
    return changed if changed.cpu_percent is None else changed._replace(cpu_burst=new.cpu_burst)


def _with_sample(node: Node, config: Config, given: GivenOptions) -> Config:
    """Return the configuration with the sample of --applyconfig under the other options."""
    names = [text for name, text in given if normal(name) == "applyconfig"]
    for name in names:
        sample = Config.parse(node.registry.sample(name or "").values(), f"ve-{name}.conf-sample")
        fields = [row.field for row in params.PARAMS if not row.local and sample.is_set(row.field)]
        config = config.changed({field: sample.get(field) for field in fields})
        config = config.changed({"template.sample": name})
    return config


def _waiting(made: Plan, dialect: str) -> tuple[str, ...]:
    """Return the options that a running container obeys only from its next start on."""
    rows = [params.by_field(field) for field in dict.fromkeys(made.fields)]
    late = [row for row in rows if not row.live and row.field not in _WRITTEN_INSIDE]
    return tuple(row.options[dialect][0].name for row in late if row.options.get(dialect))


def _put_in_force(
    node: Node, env: Environment, old: Config, made: Plan, undo: ExitStack
) -> list[str]:
    """Change the running container; return what its kernel cannot keep, in words."""
    memory.change(node, env, old, made.config, undo)
    unapplied = _apply_limits(node, env, old, made.config, undo)
    hostname = made.config.network.hostname
    if hostname and hostname != old.network.hostname:
        guestsettings.set_hostname_live(node, env, hostname)
        undo.callback(guestsettings.set_hostname_live, node, env, old.network.hostname or env.name)
    if network.FIELDS.intersection(made.fields):
        network.change(node, env, old, made.config, undo)
    if traffic.FIELDS.intersection(made.fields):
        traffic.change(node, env, old, made.config, undo)
    if _WRITTEN_INSIDE.intersection(made.fields):
        guestsettings.write_running(node, env, made.config)
        undo.callback(guestsettings.write_running, node, env, old)
    if (new := made.password) is not None:
        password.set_inside(node, env, new.user, new.secret, crypted=new.crypted)
    return unapplied


def _apply_limits(
    node: Node, env: Environment, old: Config, new: Config, undo: ExitStack
) -> list[str]:
    before, after = (cpulimits.limits(node, env.uuid, config) for config in (old, new))
    changed = limit_changes(before, after)
    if changed == Limits():
        return []
    disks = tuple(storage.find(env.home).devices(env.home))
    undo.callback(_put_back, node, env, limit_changes(after, before), disks)
    try:
        unapplied = node.runtime.apply(env.uuid, changed, disks)
    except NotEnoughResources as error:
        error.message = error.message.replace(env.uuid, env.name)
        raise
    except OSError as error:
        raise SetError(
            f"The kernel refused the new limits of {env.name}: {error.strerror}",
            details=str(error.filename or ""),
        ) from error
    return [f"{missing.field} is not in force: {missing.reason}" for missing in unapplied]


def _put_back(
    node: Node, env: Environment, limits: Limits, disks: tuple[tuple[int, int], ...]
) -> None:
    try:
        node.runtime.apply(env.uuid, limits, disks)
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
