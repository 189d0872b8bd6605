"""Parameters of identity, templates and boot (config.md section 3.1)."""

from __future__ import annotations

import re

from pyvz.errors import BadValue
from pyvz.model.grammar import (
    Choice,
    Environment,
    EscapedText,
    Integer,
    Name,
    Text,
    Uuid,
    YesNo,
)
from pyvz.model.grammar_list import TEMPLATES, WORDS
from pyvz.model.param import MACHINES, Option, Param, both, tools

_ON_BOOT = Choice(("yes", "no", "auto"), (("on", "yes"), ("off", "no"), ("start-host", "yes")))
_DESKTOP = "this is an option of desktop products and has no effect"


def _autostart(text: str) -> str:
    if text.strip().lower() in {"start-app", "open-window"}:
        raise BadValue(f"'{text}' is an option of desktop products; give on, off or auto")
    return _ON_BOOT.parse(text)


def _template_name(text: str) -> str:
    found = TEMPLATES.parse(text)
    if len(found) != 1:
        raise BadValue(f"'{text}' is not a template name")
    return found[0]


def _sample_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text):
        raise BadValue(f"'{text}' is not the name of a sample configuration")
    return text


VEID = Param(
    "identity.veid", "VEID", Text(), help="numeric id of the old kind, or UUID", local=True
)
UUID = Param("identity.uuid", "UUID", Uuid(), help="UUID", local=True, vzlist="uuid")
NAME = Param(
    "identity.name",
    "NAME",
    Name(),
    None,
    "name, unique on the node",
    both(Option("name", "NAME", "give it another name")),
    live=True,
    local=True,
    vzlist="name",
)
DESCRIPTION = Param(
    "identity.description",
    "DESCRIPTION",
    EscapedText(),
    "",
    "description, free text",
    # The option has the plain text, the file the escaped one.
    both(Option("description", "TEXT", "description, free text", parse=str)),
    live=True,
    local=True,
    vzlist="description",
)
ROOT = Param(
    "identity.root",
    "VE_ROOT",
    Text(),
    None,
    "mount point on the node; $VEID stands for the id",
    tools(vzctl=(Option("root", "PATH", "mount point on the node"),)),
    local=True,
    vzlist="root",
)
PRIVATE = Param(
    "identity.private",
    "VE_PRIVATE",
    Text(),
    None,
    "directory of the container on the node; $VEID stands for the id",
    tools(vzctl=(Option("private", "PATH", "directory of the container on the node"),)),
    local=True,
    vzlist="private",
)
TYPE = Param(
    "identity.type",
    "VE_TYPE",
    Choice(("regular", "temporary", "template")),
    "regular",
    "regular, temporary or template",
    tools(
        prlctl=(
            Option(
                "template",
                "yes|no",
                "make it a template, or an environment again",
                parse=lambda text: "template" if YesNo().parse(text) else "regular",
            ),
        ),
        vzctl=(Option("vetype", "regular|temporary|template", "type of the container"),),
    ),
    vzlist="type",
)
VERSION = Param("identity.version", "VERSION", Text(), help="version of the file's format")
VEFORMAT = Param(
    "identity.veformat", "VEFORMAT", Text(), help="format of the private area", local=True
)
PLATFORM = Param("identity.platform", "PLATFORM", Text(), help="operating system: linux")

OSTEMPLATE = Param(
    "template.os",
    "OSTEMPLATE",
    Text(),
    "",
    "OS template it was made from",
    tools(vzctl=(Option("ostemplate", "NAME", "name of its OS template", parse=_template_name),)),
    local=True,
    vzlist="ostemplate",
)
TEMPLATES_INSTALLED = Param(
    "template.applications",
    "TEMPLATES",
    TEMPLATES,
    (),
    "application templates that are installed",
    local=True,
)
TEMPLATE = Param("template.directory", "TEMPLATE", Text(), help="template directory", local=True)
TECHNOLOGIES = Param(
    "template.technologies", "TECHNOLOGIES", WORDS, (), "features it needs", local=True
)
DISTRIBUTION = Param(
    "template.distribution",
    "DISTRIBUTION",
    Text(),
    "",
    "distribution inside, where the template does not tell",
    tools(
        prlctl=(Option("distribution", "NAME", "distribution", short="d", kinds=MACHINES),),
        vzctl=(Option("distribution", "NAME", "distribution inside"),),
    ),
    local=True,
)
ORIGIN_SAMPLE = Param(
    "template.sample",
    "ORIGIN_SAMPLE",
    Text(),
    "",
    "sample configuration it was made from",
    tools(vzctl=(Option("origin_sample", "NAME", "sample it was made from", parse=_sample_name),)),
    vzlist="origin_sample",
)
CUSTOMIZED = Param(
    "template.customized",
    "CONFIG_CUSTOMIZED",
    YesNo(),
    default=False,
    help="whether it was changed since the sample was applied",
    options=tools(vzctl=(Option("config_customized", "yes|no", "changed since the sample"),)),
)
CONFIGFILE = Param(
    "template.configfile", "CONFIGFILE", Text(), help="sample configuration (old form)", local=True
)

DISABLED = Param(
    "boot.disabled",
    "DISABLED",
    YesNo(),
    default=False,
    help="refuse to start",
    options=tools(vzctl=(Option("disabled", "yes|no", "refuse to start without --force"),)),
    live=True,
    vzlist="disabled",
)
ONBOOT = Param(
    "boot.onboot",
    "ONBOOT",
    _ON_BOOT,
    "no",
    "start with the node: yes, no, auto (as it was at shutdown)",
    tools(
        prlctl=(
            Option(
                "autostart",
                "on|off|auto",
                "start with the node; auto: as it was at shutdown",
                parse=_autostart,
                aliases=("onboot",),
            ),
        ),
        vzctl=(Option("onboot", "yes|no|auto", "start with the node"),),
    ),
    live=True,
    vzlist="onboot",
)
BOOTORDER = Param(
    "boot.order",
    "BOOTORDER",
    Integer(0, 2**63 - 1),
    None,
    "order of start with the node: higher is earlier, unset is last",
    tools(vzctl=(Option("bootorder", "N", "order of start: higher is earlier"),)),
    live=True,
    vzlist="bootorder",
)
AUTOSTOP = Param(
    "boot.autostop",
    "AUTOSTOP",
    Choice(("stop", "suspend")),
    None,
    "what happens when the node shuts down",
    tools(
        prlctl=(Option("autostop", "stop|suspend", "what happens when the node shuts down"),),
        vzctl=(
            Option(
                "autostop",
                "stop|suspend",
                "what happens when the node shuts down",
                aliases=("autostopt",),
            ),
        ),
    ),
    aliases=("AUTOSTOPSTOP",),
    live=True,
    vzlist="autostop",
)
OSRELEASE = Param("boot.osrelease", "OSRELEASE", Text(), "", "kernel release to report inside")
ENVIRONMENT = Param(
    "boot.environment", "VE_ENVIRONMENT", Environment(), (), "environment of init: A=B C=D"
)
ALLOW_REBOOT = Param(
    "boot.allow_reboot", "ALLOWREBOOT", YesNo(), default=True, help="start again after a reboot"
)
HA_ENABLE = Param(
    "boot.ha_enable",
    "HA_ENABLE",
    YesNo(),
    default=True,
    help="restart elsewhere when the node fails",
    options=both(
        Option("ha-enable", "yes|no", "restart elsewhere when the node fails", aliases=("ha",))
    ),
    live=True,
    vzlist="ha_enable",
)
HA_PRIO = Param(
    "boot.ha_prio",
    "HA_PRIO",
    Integer(0, 2**32 - 1),
    0,
    "order of restart elsewhere: higher is earlier",
    both(Option("ha-prio", "N", "order of restart elsewhere: higher is earlier")),
    live=True,
    vzlist="ha_prio",
)
