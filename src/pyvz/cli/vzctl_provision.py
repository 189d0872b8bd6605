"""vzctl: create, destroy, register, unregister.  Texts as in libvzctl 7."""

from __future__ import annotations

import os

from pyvz.cli import options
from pyvz.cli.arguments import key_of
from pyvz.cli.vzctl import container, is_id, tell
from pyvz.errors import Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

_CREATE: tuple[OptionRow, ...] = (
    ("--ostemplate", "TEMPLATE", "OS template (default: DEF_OSTEMPLATE of vz.conf)"),
    ("--config", "SAMPLE", "configuration sample (default: CONFIGFILE of vz.conf)"),
    ("--private", "PATH", "private area, $VEID stands for the UUID"),
    ("--root", "PATH", "mount point, $VEID stands for the UUID"),
    ("--uuid,--id", "UUID", "use this UUID"),
    ("--ve_layout,--layout,--velayout", "LAYOUT", "storage driver, for example simfs"),
    ("--pool", "NAME", "storage pool to make it in; see prlsrvctl pool"),
    ("--no-hdd,--no_hdd", "", "make no root disk"),
    ("--force", "", "accepted, no effect"),
    ("--skip_app_templates", "", "accepted, no effect"),
    ("--expanded", "", "accepted, no effect with this storage"),
    ("--preallocated,--plain", "", "accepted, no effect with this storage"),
    ("--raw", "", "accepted, no effect with this storage"),
    ("--encryption-keyid", "ID", "refused: not supported yet"),
)
_OWN = frozenset(key_of(row) for row in _CREATE)

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "create": (*_CREATE, *(row for row in options.VZCTL if key_of(row) not in _OWN)),
    "register": (
        ("--force", "", "also when it is registered elsewhere"),
        ("--renew", "", "give it a new UUID"),
        ("--start", "", "start it then"),
        ("--id,--uuid", "UUID", "use this UUID"),
        ("--name", "NAME", "use this name"),
        ("--skip_cluster", "", "accepted, no effect"),
    ),
}


def create_(args: Arguments, server: Server) -> int:
    """Create a container."""
    ref = args.word("ctid")
    if args.has("encryption-keyid"):
        raise Unsupported("Encrypted disks are not supported yet")
    own = _OWN | {"name", "quiet", "debug", "timeout", "verbose"}
    given = [{"name": name, "value": value} for name, value in args.options if name not in own]
    tell(args, "Creating Container private area")
    server.run(
        "Environment.Create",
        kind="ct",
        ostemplate=args.value("ostemplate"),
        config=args.value("config"),
        private=args.value("private"),
        root=args.value("root"),
        layout=args.value("ve_layout"),
        pool=args.value("pool"),
        options=given,
        dialect="vzctl",
        no_disk=args.has("no-hdd"),
        **_identity(ref, args),
    )
    tell(args, "Container private area was created")
    return 0


def _identity(ref: str, args: Arguments) -> dict[str, Any]:
    """Return what REF says the new container is: its UUID, its number, or its name."""
    uuid, name = args.value("uuid"), args.value("name")
    if ref.isascii() and ref.isdigit():
        return {"ctid": ref, "uuid": uuid, "name": name}
    if is_id(ref):
        if uuid is not None and uuid.strip("{}").lower() != ref.strip("{}").lower():
            raise UsageError("The CTID and --uuid name two UUIDs")
        return {"uuid": ref.strip("{}").lower(), "name": name}
    if name is not None and name != ref:
        raise UsageError(f"Both '{ref}' and --name '{name}' are given as the name")
    return {"uuid": uuid, "name": ref}


def destroy_(args: Arguments, server: Server) -> int:
    """Delete a stopped container."""
    found = container(server, args.word("ctid"))
    tell(args, "Destroying Container private area")
    server.run("Environment.Delete", ref=found.uuid, force=False)
    tell(args, "Container private area was destroyed")
    return 0


def register_(args: Arguments, server: Server) -> int:
    """Make a private area known."""
    args.no_more_words(2)
    path, *ids = args.words
    ref = ids[0] if ids else None
    numeric = ref is not None and ref.isdigit()
    uuid = args.value("id")
    if ref is not None and not numeric and is_id(ref):
        uuid = ref.strip("{}").lower()
    reply = server.change(
        "Environment.Register",
        path=os.path.abspath(path),
        uuid=uuid,
        preserve_uuid=uuid is None and not args.has("renew"),
        force=args.has("force"),
        name=args.value("name") or (ref if ref is not None and not is_id(ref) else None),
        ctid=ref if numeric else None,
    )
    tell(args, f"Container {reply['uuid']} was successfully registered")
    if args.has("start"):
        server.run(
            "Environment.Start",
            ref=reply["uuid"],
            wait=False,
            repair=False,
            force=False,
            skip_fsck=False,
        )
    return 0


def unregister_(args: Arguments, server: Server) -> int:
    """Forget a container; its files stay."""
    found = container(server, args.word("ctid"))
    server.change("Environment.Unregister", ref=found.uuid)
    tell(args, "Container unregistered succesfully")
    return 0
