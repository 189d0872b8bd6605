"""prlctl: create, delete, register, unregister, clone, move.  Texts as in prlctl 7 (PrlSrv.cpp)."""

from __future__ import annotations

import os

from pyvz.cli.program import failed
from pyvz.cli.subject import act, find, say
from pyvz.errors import Unsupported, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "create": (
        ("--vmtype", "ct|vm", "what to create; vm is the default of the original"),
        ("-t,--ostemplate", "TEMPLATE", "OS template (default: DEF_OSTEMPLATE of vz.conf)"),
        ("-c,--config", "SAMPLE", "configuration sample (default: CONFIGFILE of vz.conf)"),
        ("--dst,--location", "PATH", "parent directory of the private area"),
        ("--pool", "NAME", "storage pool to make it in; see prlsrvctl pool"),
        ("--uuid", "UUID", "use this UUID"),
        ("--no-hdd", "", "make no root disk"),
        ("--chipset", "q35|piix", "board of a VM (default: q35); it keeps it"),
        ("--ssh-keys", "FILE", "public keys that let in as root, by template or cloud-init"),
        ("--cloud-init", "yes|no", "tell cloud-init of a VM its name, keys, addresses"),
        ("--encryption-keyid", "ID", "encrypt the disk of a VM with this key of the node"),
        ("--import", "PATH", "make a VM of a disk image, OVA or OVF; the source stays as it is"),
        ("-o,--ostype", "NAME|list", "family of the guest of a VM; ignored for containers"),
        ("-d,--distribution", "NAME|list", "guest of a VM; ignored for containers"),
        ("-s,--changesid", "", "for VMs; ignored for containers"),
        ("--hdd-block-size", "SIZE", "accepted, no effect with this storage"),
    ),
    "delete": (("--force", "", "stop it first when it runs"),),
    "register": (
        ("--preserve-uuid", "", "keep the UUID that the files name"),
        ("--uuid", "UUID", "use this UUID"),
        ("--regenerate-src-uuid", "", "accepted, no effect"),
        ("--force", "", "also when it is registered elsewhere"),
        ("--ignore-ha-cluster", "", "accepted, no effect"),
    ),
    "clone": (
        ("-n,--name", "NAME", "name of the copy (required)"),
        ("--dst,--location", "PATH|POOL", "directory or pool of the copy's private area"),
        ("-t,--template", "", "the copy becomes a template"),
        ("-s,--changesid", "", "for VMs; ignored for containers"),
        ("--linked", "", "copy nothing: share the blocks of the original"),
        ("--detach-external-hdd", "yes|no", "leave disks outside a VM's home behind (no: copy)"),
        ("--online", "", "accepted, no effect"),
    ),
    "move": (
        ("--dst,--location", "PATH|POOL", "directory or pool to move it to (required)"),
        ("--restart", "", "stop and start one that runs instead of saving its memory"),
    ),
}

_OF_MACHINES = ("chipset", "ssh-keys", "cloud-init")
_SWITCH = {"yes": True, "on": True, "no": False, "off": False}
_KINDS = {"ct": "ct", "c": "ct", "vm": "vm", "v": "vm"}


def create_(args: Arguments, server: Server) -> int:
    """Create a container or a virtual machine."""
    name = args.word("The name")
    kind = _KINDS.get(args.value("vmtype", "vm") or "")
    if kind is None:
        text = args.value("vmtype")
        raise UsageError(f"An incorrect value '{text}' for --vmtype is specified: use ct or vm")
    if args.has("config") and args.has("ostype"):
        raise UsageError("Unable to simultaneously use --config and --ostype")
    if kind == "vm":
        return _create_machine(args, server, name)
    if args.has("distribution") or args.has("ostype"):
        say("The --distribution and --ostype options are ignored for containers.")
    for option in _OF_MACHINES:
        if args.has(option):
            raise UsageError(f"--{option} is for virtual machines")
    if args.has("encryption-keyid"):
        raise Unsupported("Encrypted disks are not supported yet")
    say("Creating the Container...")
    try:
        server.run(
            "Environment.Create",
            name=name,
            kind=kind,
            ostemplate=args.value("ostemplate"),
            config=args.value("config"),
            private=_destination(args, name=args.value("uuid") or "$VEID"),
            pool=args.value("pool"),
            uuid=args.value("uuid"),
            options=[],
            dialect="prlctl",
            no_disk=args.has("no-hdd"),
        )
    except VZError as error:
        raise failed("create the Container", error) from error
    say("The Container has been successfully created.")
    return 0


def _create_machine(args: Arguments, server: Server, name: str) -> int:
    """Create a virtual machine."""
    from pyvz.cli import distributions  # noqa: PLC0415  a container has no use for it

    sources = ("config", "ostemplate", "distribution", "ostype", "import")
    given = [name for name in sources if args.has(name)]
    if len(given) > 1:
        raise UsageError(f"Unable to simultaneously use --{given[0]} and --{given[1]}")
    options: list[dict[str, str | None]] = []
    if given and given[0] in {"distribution", "ostype"}:
        text = args.value(given[0]) or ""
        if text == "list":
            say(distributions.listing(families=given[0] == "ostype"))
            return 0
        found = distributions.find(text, family=given[0] == "ostype")
        options.append({"name": "distribution", "value": found})
    for option in ("chipset", "cloud-init"):
        if args.has(option):
            options.append({"name": option, "value": args.value(option)})
    if args.has("ssh-keys"):
        from pyvz.cli.prlctl_set import keys_of  # noqa: PLC0415  few give them

        options.append({"name": "ssh-keys", "value": keys_of(args.value("ssh-keys") or "")})
    source, key = args.value("import"), args.value("encryption-keyid")
    if key is not None and (source or args.has("no-hdd")):
        raise UsageError("--encryption-keyid is about the disk that is made")
    if key is not None:
        options += [
            {"name": "device-set", "value": "hdd0"},
            {"name": "encryption-keyid", "value": key},
        ]
    say("Creating the virtual machine...")
    try:
        server.run(
            "Environment.Create",
            name=name,
            kind="vm",
            ostemplate=args.value("ostemplate"),
            config=args.value("config"),
            private=_destination(args, name=args.value("uuid") or "$VEID"),
            pool=args.value("pool"),
            uuid=args.value("uuid"),
            options=options,
            dialect="prlctl",
            no_disk=args.has("no-hdd"),
            source=source and os.path.abspath(source),
        )
    except VZError as error:
        raise failed("create the virtual machine", error) from error
    say("The VM has been successfully created.")
    return 0


def delete_(args: Arguments, server: Server) -> int:
    """Delete an environment and its files."""
    subject = find(server, args.word("The ID or name"))
    words = ("Removing", "remove", "successfully removed.")
    act(server, subject, words, "Environment.Delete", force=args.has("force"))
    return 0


def register_(args: Arguments, server: Server) -> int:
    """Make a private area known."""
    path = args.word("The path")
    if args.has("preserve-uuid") and args.has("uuid"):
        raise UsageError("Unable to simultaneously use --preserve-uuid and --uuid")
    say("Register the virtual environment...")
    try:
        server.change(
            "Environment.Register",
            path=os.path.abspath(path),
            uuid=args.value("uuid"),
            preserve_uuid=args.has("preserve-uuid"),
            force=args.has("force"),
        )
    except VZError as error:
        raise failed("register the virtual environment", error) from error
    say("The virtual environment has been successfully registered.")
    return 0


def unregister_(args: Arguments, server: Server) -> int:
    """Forget an environment; its files stay."""
    subject = find(server, args.word("The ID or name"))
    say(f"Unregister the {subject.kind}...")
    try:
        server.change("Environment.Unregister", ref=subject.uuid)
    except VZError as error:
        raise failed(f"unregister the {subject.kind}", error) from error
    say(f"The {subject.kind} has been successfully unregistered.")
    return 0


def clone_(args: Arguments, server: Server) -> int:
    """Copy a stopped environment."""
    ref = args.word("The ID or name")
    subject = find(server, ref)
    kind = subject.kind
    name = args.value("name")
    if not name:
        raise UsageError(f"Failed to clone the {kind}; the --name option is not specified.")
    template = args.has("template")
    detach = args.value("detach-external-hdd", "no")
    if detach not in _SWITCH:
        raise UsageError(
            f"An incorrect value '{detach}' for --detach-external-hdd is specified: use yes or no"
        )
    say(f"Clone the {ref} {kind} to {'template' if template else kind} {name}...")
    try:
        server.run(
            "Environment.Clone",
            ref=subject.uuid,
            name=name,
            dst=_place(args),
            template=template,
            linked=args.has("linked"),
            detach=_SWITCH[detach or ""],
        )
    except VZError as error:
        raise failed(f"clone the {kind}", error) from error
    say(f"The {kind} has been successfully cloned.")
    return 0


def move_(args: Arguments, server: Server) -> int:
    """Move an environment to another directory of this node."""
    ref = args.word("The ID or name")
    subject = find(server, ref)
    kind = subject.kind
    target = _place(args)
    if not target:
        raise UsageError(f"Failed to move the {kind}; the --dst option is not specified.")
    say(f"Move the {ref} {kind} to {target}...")
    try:
        server.run("Environment.Move", ref=subject.uuid, dst=target, restart=args.has("restart"))
    except VZError as error:
        raise failed(f"move the {kind}", error) from error
    say(f"The {kind} has been successfully moved.")
    return 0


def _place(args: Arguments) -> str | None:
    """Return --dst: an absolute path, or the name of a pool, which has no slash in it."""
    target = args.value("dst")
    return _destination(args) if target is None or "/" in target else target


def _destination(args: Arguments, *, name: str = "") -> str | None:
    """Return --dst (with NAME below it), refused when it is relative."""
    path = args.value("dst")
    if path is None:
        return None
    if not path.startswith("/"):
        raise UsageError(
            f"An incorrect value for --dst is specified; relative path '{path}' is not allowed."
        )
    return os.path.join(path, name) if name else path
