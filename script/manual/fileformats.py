"""vz.conf(5) and ctid.conf(5), from the tables of the model."""

from __future__ import annotations

from manual import roff
from pyvz.model import vzconf
from pyvz.model.params import PARAMS
from pyvz.model.vzconf import NodeConfig

_MEANINGS = {
    "VIRTUOZZO": "Whether containers are started with the node.",
    "LOCKDIR": "Directory of the lock files.",
    "DUMPDIR": "Directory of the dumps of suspended containers.",
    "TEMPLATE": "Directory of the templates and their caches.",
    "VE_ROOT": "Where the root of a container is mounted. $VEID stands for its UUID.",
    "VE_PRIVATE": "Where the files of a container are. $VEID stands for its UUID.",
    "CONFIGFILE": "The sample configuration of a new container.",
    "DEF_OSTEMPLATE": "The OS template of a new container; after a dot, a name without its set.",
    "VEFSTYPE": "File system of disk images.",
    "VELAYOUT": "Storage driver of a new container.",
    "GOLDEN_IMAGE": "Whether caches with applications are used.",
    "LOGGING": "Whether operations are logged.",
    "LOGFILE": "Name of the log file of vzctl.",
    "LOG_LEVEL": "How much is logged.",
    "VERBOSE": "How much is printed.",
    "DISK_QUOTA": "Whether the space of a container is limited.",
    "IPV6": "Whether containers have IPv6.",
    "TRAFFIC_SHAPING": "Whether network traffic is shaped.",
    "BANDWIDTH": "Devices that are shaped, with their speed in kbit/s.",
    "TOTALRATE": "Speed of each traffic class in kbit/s.",
    "RATE": "Guaranteed speed of a container for each traffic class in kbit/s.",
    "RATEMPU": "Smallest packet size that is counted.",
    "VE_ROUTE_SRC_DEV": "Device whose address is the source for containers.",
    "VE_PARALLEL": "How many containers start at once with the node; 0: four for each CPU.",
    "VE_STOP_MODE": "What is done with containers when the node shuts down.",
    "STOP_TIMEOUT": "Seconds that a container has for an orderly stop.",
    "REPAIR_MODE": "How file systems are checked.",
    "HTTP_PROXY": "Proxy for the repositories of templates.",
    "ALLOWREBOOT": "Whether a container that reboots is started again.",
    "VE_CGROUP_SLICE": "The cgroup that holds those of the containers.",
    "LXCFS": "yes: /proc in a container shows its own memory, CPUs, load and uptime (by lxcfs); "
    "FEATURES lxcfs:on|off of a container wins.",
    "METRICS": "[ADDRESS:]PORT on which vzd answers Prometheus (address: 127.0.0.1 unless given); "
    "empty: nowhere.  Read when vzd starts.",
    "LIBVIRT_TLS": "Where libvirt's clients come in by TLS: yes (port 16514) or [ADDRESS:]PORT; "
    "empty: nowhere.",
    "LIBVIRT_TCP": "The same without encryption and without a check who it is: for tests.",
    "LIBVIRT_CLIENTS": "Names in certificates, with wildcards, that may come in; empty: all.",
    "KSM": "yes: the kernel merges equal pages of containers; FEATURES ksm:on|off of one wins.",
}

_GRAMMAR = """Each line is NAME="value"; the quotes may be left out where the value has no blanks.
Lines that begin with # are comments. The last line of a name wins. Lines with unknown names, the
comments and the order are kept when a tool changes the file."""


def vz_conf(date: str) -> str:
    """Return vz.conf(5)."""
    defaults = NodeConfig()
    items = []
    for name, (key, _) in vzconf._KEYS.items():
        default = getattr(defaults, name)
        word = ("yes" if default else "no") if isinstance(default, bool) else str(default)
        shown = f" Default: {word}." if word else ""
        items.append((key, _MEANINGS[key] + shown))
    return (
        roff.heading("vz.conf", "5", "configuration of the node", date)
        + roff.chapter("SYNOPSIS", ".B /etc/vz/vz.conf\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                f"""{_GRAMMAR}

                Parameters of ctid.conf(5) may stand here too: they count for every container whose
                own file does not set them."""
            ),
        )
        + roff.chapter("PARAMETERS", roff.tagged(items))
        + roff.chapter("FILES", roff.paragraphs("/etc/vz/vz.conf"))
        + ".SH SEE ALSO\n.BR ctid.conf (5),\n.BR prlctl (8),\n.BR vzctl (8)\n"
    )


def ctid_conf(date: str) -> str:
    """Return ctid.conf(5)."""
    return (
        roff.heading("ctid.conf", "5", "configuration of a container", date)
        + roff.chapter("SYNOPSIS", ".BI /etc/vz/conf/ uuid .conf\n")
        + roff.chapter(
            "DESCRIPTION",
            roff.paragraphs(
                f"""The file is a link to ve.conf in the private area of the container. It is
                changed with prlctl set, or vzctl set --save. {_GRAMMAR}

                Sizes in bytes, pages of 4096 bytes, or KiB take one of the suffixes B K M G T,
                pages also P. A pair is barrier:limit; unlimited stands for no limit."""
            ),
        )
        + roff.chapter("PARAMETERS", roff.tagged(_item(row) for row in PARAMS))
        + roff.chapter(
            "FILES",
            roff.tagged(
                (
                    ("/etc/vz/conf/ve-NAME.conf-sample", "Samples for create and applyconfig."),
                    ("/etc/vz/names/", "Links from names to configurations."),
                )
            ),
        )
        + ".SH SEE ALSO\n.BR vz.conf (5),\n.BR prlctl (8),\n.BR vzctl (8)\n"
    )


def _item(row: object) -> roff.Item:
    text = str(getattr(row, "help", "")) or "See prlctl(8)"
    text = text[:1].upper() + text[1:].rstrip(".") + "."
    default = getattr(row, "default", None)
    if default not in (None, "", ()):
        word = ("yes" if default else "no") if isinstance(default, bool) else str(default)
        text += f" Default: {word}."
    if getattr(row, "live", False):
        text += " Can change while it runs."
    if getattr(row, "ignored", ""):
        text += f" No effect: {str(getattr(row, 'ignored')).rstrip('.')}."  # noqa: B009
    options = getattr(row, "options", {})
    tools = [
        f"{tool} set --{option.name}"
        for tool in ("prlctl", "vzctl")
        for option in options.get(tool, ())
        if not option.ignored and not option.scope
    ]
    if tools:
        text += " Set by " + ", ".join(tools) + "."
    return str(getattr(row, "key")), text  # noqa: B009
