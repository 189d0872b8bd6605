"""What the options of `create` and `set` ask for, as values: nothing here touches the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pyvz.errors import Unsupported, UsageError
from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.environment import Kind
from pyvz.model.param import normal
from pyvz.model.secret import Secret
from pyvz.operations.credentials import check_password, check_user

GivenOptions = Sequence[tuple[str, str | None]]

# What later releases bring: accepted nowhere, so that nobody believes in a limit or an address
# that is not in force.
_LATER = {
    "disk": "Sizes and disks of a container",
}
_IN_FORCE = frozenset(
    {
        "network.devices",
        "network.external_ip",
        "network.hostname",
        "network.ip",
        "network.interfaces",
        "network.nameservers",
        "network.searchdomains",
        "network.ip_only",
        "network.rates",
        "network.rate_bound",
        "network.firewalls",
        "network.netfilter",
        "disk.bindmounts",
        "disk.noatime",
        "disk.autocompact",
        "disk.space",
        "disk.inodes",
        "disk.mount_options",
        "disk.quota_users",
        "disk.journaled_quota",
    }
)
_QUIET = frozenset({"save", "setmode", "crypted", "force"})  # flags of the call, not changes


class NewPassword(NamedTuple):
    """A password for a user inside; crypted: it is a hash as in shadow(5)."""

    user: str
    secret: Secret
    crypted: bool


class Around(NamedTuple):
    """What the other options of the call say about one: a hash follows; it was given before."""

    crypted: bool
    again: bool


class Plan(NamedTuple):
    """What the options mean.

    config: the new configuration.  fields: the fields that were named, in order.
    echo: one line per change, as `prlctl set` prints them.  warnings: what is accepted and ignored.
    sample: a sample to apply first.  password: to be set inside.
    """

    config: Config
    fields: tuple[str, ...] = ()
    echo: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sample: str | None = None
    password: NewPassword | None = None


def plan(config: Config, dialect: str, given: GivenOptions, kind: Kind = Kind.CT) -> Plan:
    """Return what `given` makes of `config`; raises UsageError, BadValue, Unsupported."""
    made = Plan(config)
    crypted = any(normal(name) == "crypted" for name, _ in given)
    for index, (name, text) in enumerate(given):
        # A list option that is repeated in one call adds to what the first one replaced.
        again = any(normal(name) == normal(before) for before, _ in given[:index])
        made = _add(made, dialect, (name, text), kind, Around(crypted, again))
    return made


def _add(
    made: Plan, dialect: str, given: tuple[str, str | None], kind: Kind, around: Around
) -> Plan:
    name, text = given
    row, option = params.by_option(dialect, name)
    if kind not in option.kinds:
        raise UsageError(f"--{option.name} is not an option of a {_noun(kind)}")
    if option.ignored:
        return made._replace(warnings=(*made.warnings, f"--{option.name}: {option.ignored}"))
    if row is None:
        return _act(made, option.name, text or "", crypted=around.crypted)
    changes = params.changes(dialect, name, text, made.config, again=around.again)
    for field in changes:
        _check_in_force(field, option.name)
    return made._replace(
        config=made.config.changed(changes),
        fields=(*made.fields, *changes),
        echo=(*made.echo, f"set {option.name} {text}" if text else f"set {option.name}"),
    )


def _act(made: Plan, name: str, text: str, *, crypted: bool) -> Plan:
    """Take an option that is no parameter."""
    if name in _QUIET:
        return made
    if name == "userpasswd":
        user, _, password = text.partition(":")
        if not user or not password:
            raise UsageError("--userpasswd: give USER:PASSWORD")
        check_user(user)
        check_password(Secret(password), crypted=crypted)
        return made._replace(password=NewPassword(user, Secret(password), crypted))
    if name == "applyconfig":
        return made._replace(sample=text, echo=(*made.echo, f"set applyconfig {text}"))
    raise Unsupported(f"--{name} is not supported by this version")


def _check_in_force(field: str, option: str) -> None:
    if field in _IN_FORCE:
        return
    what = _LATER.get(field) or _LATER.get(field.partition(".")[0])
    if what is not None:
        raise Unsupported(f"--{option}: {what} are not supported by this version")


def _noun(kind: Kind) -> str:
    return "container" if kind == Kind.CT else "virtual machine"
