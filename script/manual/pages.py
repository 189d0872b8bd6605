"""The manual pages, composed from the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manual import fileformats, migrate, options_module, roff, watching
from pyvz.cli import (
    exitcodes,
    pcompact,
    ploop,
    prl_disk_tool,
    prlctl,
    prlsrvctl,
    vcmmdctl,
    vzctl,
    vzlist,
    vznetstat,
    vzpkg,
)
from pyvz.cli.arguments import option_names
from pyvz.cli.prlctl_list import ALIASES, COLUMNS
from pyvz.cli.vzlist_fields import FIELDS, HIDDEN
from pyvz.model.param import Option

if TYPE_CHECKING:
    from pyvz.cli.arguments import OptionRow

DATE = "2026-11-23"

_IDS = """An environment is named by its UUID (with or without braces), by its name, or by its
legacy numeric CTID."""

_PRLCTL_CODES = (
    ("0", "Success; also stop of an environment that does not run."),
    ("1", "The command line is wrong, or a value is out of its range."),
    ("130", "Ctrl-C; what had been done was undone."),
    ("253", "vzd cannot be reached."),
    ("255", "Every other error."),
    ("N", "exec, enter: the exit status of the command."),
)


def option_tag(row: OptionRow) -> str:
    """Return the tag of an option in a list."""
    value = " " + row[1].lstrip("+") if row[1] else ""
    return ", ".join(option_names(row)) + value


def option_items(rows: tuple[OptionRow, ...]) -> str:
    """Return a list of options."""
    return roff.tagged(
        (option_tag(row), _sentence(row[2], repeat=row[1].startswith("+"))) for row in rows
    )


def _sentence(text: str, *, repeat: bool = False) -> str:
    text = text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
    return text + (" May be given more than once." if repeat else "")


def set_items(dialect: str) -> str:
    """Return the list of the options of `set`."""
    return roff.tagged(
        (_set_tag(option), _sentence(option.help, repeat=option.repeat) + _scope(option))
        for option in options_module.documented(dialect)
        if option.name not in {"save", "setmode", "reset_ub", "force"}  # rows of vzctl's own
    )


def _set_tag(option: Option) -> str:
    names = options_module.names(option).replace(",", ", ")
    return names + (" " + option.metavar if option.metavar else "")


def _scope(option: Option) -> str:
    where = {"netif": "interface", "disk": "disk"}.get(option.scope)
    return f" Belongs to the {where} named before it." if where else ""


def _verbs(tool: str, verbs: tuple[tuple[str, str, str, str], ...], set_options: str) -> str:
    text = ""
    module = prlctl if tool == "prlctl" else vzctl
    for row in verbs:
        names, words, summary, _ = row
        verb = names.split(",")[0]
        title = " | ".join(names.split(",")) + (f" {words}" if words else "")
        body = roff.paragraphs(_sentence(summary))
        options = module.load(row).OPTIONS.get(verb, ())
        if verb == "set":
            own = tuple(option for option in options if option[2])
            body += option_items(own) + set_options
        else:
            body += option_items(tuple(option for option in options if option[2]))
        text += roff.part(title, body)
    return text


def prlctl_page() -> str:
    """Return prlctl(8)."""
    columns = [(column[0], f"{column[1]}") for column in COLUMNS if column[0] != "-"]
    columns += [(alias, f"the same as {name}") for alias, name in ALIASES.items()]
    return (
        roff.heading("prlctl", "8", "manage containers and virtual machines", DATE)
        + roff.chapter("SYNOPSIS", ".B prlctl\n.I action\n[\n.I id|name\n] [\n.I options\n]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                f"""prlctl creates, runs and changes the environments of this node. It asks the
                daemon vzd, and starts it when it does not run and the user is root.

                {_IDS} Switches take on or yes, off or no. Sizes take one of the suffixes B K M G
                T, in steps of 1024."""
            ),
        )
        + roff.chapter("ACTIONS", _verbs("prlctl", prlctl.VERBS, set_items("prlctl")))
        + roff.chapter("GLOBAL OPTIONS", option_items(prlctl.GLOBAL))
        + roff.chapter("COLUMNS OF LIST", roff.tagged(columns))
        + roff.chapter("EXIT STATUS", roff.tagged(_PRLCTL_CODES))
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "prlctl create web --vmtype ct --ostemplate debian-12-x86_64",
                    "prlctl set web --cpus 2 --memsize 1G --hostname web.example.com",
                    "prlctl start web --wait",
                    "prlctl exec web apt-get update",
                    "prlctl list -a -o uuid,status,name",
                )
            ),
        )
        + _see_also("prlsrvctl(8)", "vzctl(8)", "vzlist(8)", "vz.conf(5)", "ctid.conf(5)")
    )


def prlsrvctl_page() -> str:
    """Return prlsrvctl(8)."""
    verbs = ""
    for names, words, summary in prlsrvctl.VERBS:
        title = " | ".join(names.split(",")) + (f" {words}" if words else "")
        rows = prlsrvctl.options(names.split(",")[0])
        verbs += roff.part(title, roff.paragraphs(_sentence(summary)) + option_items(rows))
    return (
        roff.heading("prlsrvctl", "8", "manage the node", DATE)
        + roff.chapter("SYNOPSIS", ".B prlsrvctl\n.I action\n[\n.I options\n]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """prlsrvctl tells what the node is and what its kernel can do, lists the
                templates, and ends the daemon vzd. Environments run on without vzd; the next
                command starts it again."""
            ),
        )
        + roff.chapter("ACTIONS", verbs)
        + roff.chapter("GLOBAL OPTIONS", option_items(prlsrvctl.GLOBAL))
        + roff.chapter("EXIT STATUS", roff.tagged(_PRLCTL_CODES[:-1]))
        + roff.chapter("EXAMPLES", roff.example(("prlsrvctl info", "prlsrvctl info -j")))
        + _see_also("prlctl(8)", "vz.conf(5)")
    )


def vzctl_page() -> str:
    """Return vzctl(8)."""
    codes: dict[int, list[str]] = {0: ["Success."]}
    for kind, code in exitcodes.VZCTL.items():
        codes.setdefault(code, []).append(" ".join((kind.__doc__ or "").split()))
    codes[3] = ["Any error without a number of its own."]
    codes[8] = ["exec: the command failed or could not be run."]
    codes[137] = ["The name cannot be set without --save."]
    return (
        roff.heading("vzctl", "8", "manage containers", DATE)
        + roff.chapter(
            "SYNOPSIS",
            ".B vzctl\n[\n.I global options\n]\n.I command ctid|name\n[\n.I options\n]\n",
        )
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                f"""vzctl is the older command line of OpenVZ, for containers only. {_IDS} Long
                options may be shortened while they stay unambiguous, and take - and _ alike."""
            ),
        )
        + roff.chapter("GLOBAL OPTIONS", option_items(vzctl.GLOBAL))
        + roff.chapter("COMMANDS", _verbs("vzctl", vzctl.VERBS, set_items("vzctl")))
        + roff.chapter(
            "EXIT STATUS",
            roff.tagged((str(code), " ".join(texts)) for code, texts in sorted(codes.items())),
        )
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "vzctl create 101 --ostemplate debian-12-x86_64 --hostname ct101",
                    "vzctl set 101 --ram 512M --swap 512M --save",
                    "vzctl start 101",
                    "vzctl exec2 101 test -e /etc/debian_version",
                    "vzctl enter 101",
                )
            ),
        )
        + _see_also("prlctl(8)", "vzlist(8)", "vz.conf(5)", "ctid.conf(5)")
    )


def vzlist_page() -> str:
    """Return vzlist(8)."""
    shown = (name for name in FIELDS if name not in HIDDEN and not name.startswith("slm"))
    fields = [(name, FIELDS[name][0]) for name in shown]
    return (
        roff.heading("vzlist", "8", "list containers", DATE)
        + roff.chapter("SYNOPSIS", ".B vzlist\n[\n.I options\n] [\n.I ctid\n\\&...]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vzlist prints the running containers, or those that are named, in columns or as
                JSON. The default fields are veid, numproc, status, configured_ip, hostname. Fields
                of bean counters have the suffixes .m (maximum), .b (barrier), .l (limit) and .f
                (failures); those of disks .s (soft limit) and .h (hard limit). What the kernel
                does not count is printed as - and is null in JSON.

                A field with several values shows the first one, all where it is the last
                column."""
            ),
        )
        + roff.chapter("OPTIONS", option_items(vzlist.OPTIONS))
        + roff.chapter("FIELDS", roff.tagged(fields))
        + roff.chapter(
            "EXIT STATUS",
            roff.tagged((("0", "Success."), ("1", "An unknown field or container, any error."))),
        )
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                ("vzlist -a", "vzlist -o ctid,numproc,physpages.l -s -numproc", "vzlist -j")
            ),
        )
        + _see_also("vzctl(8)", "prlctl(8)")
    )


def pcompact_page() -> str:
    """Return pcompact(8)."""
    return (
        roff.heading("pcompact", "8", "give unused space of disks back", DATE)
        + roff.chapter("SYNOPSIS", ".B pcompact\n[\n.I options\n]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """pcompact looks at the disks of all containers, running or not, and compacts those
                of which more than THRESHOLD percent take space of the node and are not used
                inside. Containers and disks with AUTOCOMPACT=no are left alone. Nothing runs it by
                itself: put it into cron where you want that.

                /etc/vz/pcompact.conf may say THRESHOLD=N (10 without it); DELTA and DEFRAG of the
                original have no meaning and are ignored."""
            ),
        )
        + roff.chapter("OPTIONS", option_items(pcompact.OPTIONS))
        + roff.chapter("EXIT STATUS", roff.tagged((("0", "Success."), ("1", "Any error."))))
        + roff.chapter("EXAMPLES", roff.example(("pcompact -n", "pcompact -t 3600")))
        + _see_also("vzctl(8)", "ploop(8)")
    )


def vznetstat_page() -> str:
    """Return vznetstat(8)."""
    return (
        roff.heading("vznetstat", "8", "traffic of containers by class", DATE)
        + roff.chapter("SYNOPSIS", ".B vznetstat\n[\n.I options\n]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vznetstat prints for each container and class of traffic how many bytes and
                packets it has received (Input) and sent (Output) since it was made or since the
                counters were reset; restarts of the container and of the node do not reset them.

                Which addresses are of which class is written in
                /etc/vz/conf/networks_classes, a class (0 to 15) and a network per line; the most
                specific network counts. Class 1 is what no line names. Packets that a filter
                has dropped are not counted."""
            ),
        )
        + roff.chapter("OPTIONS", option_items(vznetstat.OPTIONS))
        + roff.chapter("EXIT STATUS", roff.tagged((("0", "Success."), ("1", "Any error."))))
        + roff.chapter("EXAMPLES", roff.example(("vznetstat", "vznetstat -6 -v web -c 2")))
        + _see_also("prlctl(8)", "prlsrvctl(8)", "vzlist(8)")
    )


def vcmmdctl_page() -> str:
    """Return vcmmdctl(8)."""
    verbs = ""
    for verb, words, summary in vcmmdctl.VERBS:
        rows = vcmmdctl.OPTIONS.get(verb, ())
        title = f"{verb} {words}" if words else verb
        verbs += roff.part(title, roff.paragraphs(_sentence(summary)) + option_items(rows))
    codes = (("0", "Success."), ("1", "Any error."), ("2", "The command line is wrong."))
    return (
        roff.heading("vcmmdctl", "8", "the memory manager of the node", DATE)
        + roff.chapter("SYNOPSIS", ".B vcmmdctl\n.I command\n[\n.I options\n]\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vcmmdctl asks the memory manager, a part of vzd, who is promised how much memory
                and what is used, and changes the policy by which memory is moved between
                environments. Every environment that runs is registered under its UUID; what is
                changed here lasts until it stops, unlike the settings of prlctl set.

                A service of the node (SRVC) is registered by the path of its control group, such as
                system.slice/nginx.service, so that its guarantee counts when others are promised
                memory. Sizes are bytes, or take one of the suffixes k m g; a negative one means no
                limit. Lists show kilobytes unless another unit is asked for."""
            ),
        )
        + roff.chapter("COMMANDS", verbs)
        + roff.chapter(
            "FILES", roff.tagged((("/etc/vz/vcmmd.conf", "Policy and reservations, as JSON."),))
        )
        + roff.chapter("EXIT STATUS", roff.tagged(codes))
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "vcmmdctl list -m",
                    "vcmmdctl set-policy pressure",
                    "vcmmdctl register SRVC system.slice/nginx.service --guarantee 256m",
                )
            ),
        )
        + _see_also("prlctl(8)", "prlsrvctl(8)", "vzctl(8)")
    )


def vzpkg_page() -> str:
    """Return vzpkg(8)."""
    commands = [
        (f"{words} {operands}", _sentence(summary))
        for words, operands, summary, _ in vzpkg.COMMANDS
    ]
    codes = [("0", "Success."), ("2", "status: something is not up to date.")]
    codes += _codes(exitcodes.VZPKG)
    return (
        roff.heading("vzpkg", "8", "manage EZ templates and the packages of containers", DATE)
        + roff.chapter(
            "SYNOPSIS", ".B vzpkg\n.I command\n[\n.I options\n]\n[\n.I object\n\\&...]\n"
        )
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """vzpkg builds caches of OS templates, from which containers are created, and
                installs application templates and packages in running containers. A template is
                named by distribution, version and architecture, as in debian-12-x86_64; the
                architecture may be left out."""
            ),
        )
        + roff.chapter("COMMANDS", roff.tagged(commands))
        + roff.chapter("OPTIONS", option_items(vzpkg.OPTIONS))
        + roff.chapter("EXIT STATUS", roff.tagged(codes))
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "vzpkg create cache debian-12-x86_64",
                    "vzpkg list -O",
                    "vzpkg install web1 nginx",
                    "vzpkg install -p web1 mc tmux",
                )
            ),
        )
        + _see_also("prlctl(8)", "vzctl(8)", "vz.conf(5)")
    )


def ploop_page() -> str:
    """Return ploop(8)."""
    commands = ""
    for row in ploop.COMMANDS:
        names, operands, summary, _ = row
        options = ploop.load(row).OPTIONS[names.split(",")[0]]
        commands += roff.part(
            " | ".join(names.split(",")) + f" {operands}".rstrip(),
            roff.paragraphs(_sentence(summary)) + option_items(options),
        )
    return (
        roff.heading("ploop", "8", "disk images of containers", DATE)
        + roff.chapter("SYNOPSIS", ".B ploop\n.I command\n[\n.I options\n]\n.I disk\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """ploop makes, mounts, changes and converts disks in the ploop format of OpenVZ. A
                disk is named by its DiskDescriptor.xml or by the directory that holds it; where
                FILE is said, by an image file. Sizes count sectors of 512 bytes unless they have a
                suffix K, M, G or T.

                Images that are used on this node have all their blocks in order behind the header
                (the identity form); they take space as they are written to. Thin images and stacks
                of deltas from OpenVZ are brought into it by ploop convert -f preallocated, and
                back by ploop convert -f expanded."""
            ),
        )
        + roff.chapter("COMMANDS", commands)
        + roff.chapter("EXIT STATUS", roff.tagged([("0", "Success."), *_codes(exitcodes.PLOOP)]))
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "ploop init -s 10G -t ext4 /vz/disks/data/root.hds",
                    "ploop mount -m /mnt /vz/disks/data/DiskDescriptor.xml",
                    "ploop snapshot /vz/disks/data/DiskDescriptor.xml",
                    "ploop umount -m /mnt",
                    "ploop convert -f preallocated /from/openvz/root.hdd/DiskDescriptor.xml",
                )
            ),
        )
        + _see_also("prl_disk_tool(8)", "prlctl(8)", "vzctl(8)")
    )


def prl_disk_tool_page() -> str:
    """Return prl_disk_tool(8)."""
    commands = [
        (f"{name} {operands}".rstrip(), _sentence(summary))
        for name, operands, summary, _ in prl_disk_tool.COMMANDS
    ]
    return (
        roff.heading("prl_disk_tool", "8", "resize, compact and convert virtual disks", DATE)
        + roff.chapter(
            "SYNOPSIS", ".B prl_disk_tool\n.I command\n.B \\-\\-hdd\n.I dir\n[\n.I options\n]\n"
        )
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                """prl_disk_tool works on a disk named by its directory, which holds a
                DiskDescriptor.xml. A thin or raw disk is brought into the form that runs on this
                node when it is resized."""
            ),
        )
        + roff.chapter("COMMANDS", roff.tagged(commands))
        + roff.chapter("OPTIONS", option_items(prl_disk_tool.OPTIONS))
        + roff.chapter("EXIT STATUS", roff.tagged(_PRLCTL_CODES[:-1]))
        + roff.chapter(
            "EXAMPLES",
            roff.example(
                (
                    "prl_disk_tool resize --size 20G --resize_partition --hdd /vz/disks/data",
                    "prl_disk_tool compact --hdd /vz/disks/data",
                )
            ),
        )
        + _see_also("ploop(8)", "prlctl(8)")
    )


def _codes(table: exitcodes.Table) -> list[tuple[str, str]]:
    """Return the codes of errors with the first sentence of what each error means."""
    rows: dict[int, str] = {}
    for kind, code in table.items():
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        rows.setdefault(code, meaning)
    return [(str(code), meaning) for code, meaning in sorted(rows.items())]


def _see_also(*names: str) -> str:
    lines = []
    for index, name in enumerate(names):
        page, section = name.rstrip(")").split("(")
        end = "," if index < len(names) - 1 else ""
        lines.append(f".BR {roff.quoted(page)} ({section}){end}")
    return ".SH SEE ALSO\n" + "\n".join(lines) + "\n"


def all_pages() -> dict[str, str]:
    """Return the text of every page by file name."""
    return {
        "prlctl.8": prlctl_page(),
        "prlsrvctl.8": prlsrvctl_page(),
        "vzctl.8": vzctl_page(),
        "vzlist.8": vzlist_page(),
        "vzmigrate.8": migrate.vzmigrate_page(DATE),
        "pcompact.8": pcompact_page(),
        "vznetstat.8": vznetstat_page(),
        "vzubc.8": watching.vzubc_page(DATE),
        "vzstat.8": watching.vzstat_page(DATE),
        "vcmmdctl.8": vcmmdctl_page(),
        "vzpkg.8": vzpkg_page(),
        "ploop.8": ploop_page(),
        "prl_disk_tool.8": prl_disk_tool_page(),
        "vz.conf.5": fileformats.vz_conf(DATE),
        "ctid.conf.5": fileformats.ctid_conf(DATE),
    }
