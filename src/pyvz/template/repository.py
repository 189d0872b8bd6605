"""Where a template's packages come from: repository lines, variables, and the node's own sources.

Templates never name a host.  A line of a `repositories` file is in the form of apt's one-line
sources or, for RPM distributions, a bare URL, and both begin with a variable:

    [optional=yes] $DEBIAN_SECURITY bookworm-security main
    $ALMALINUX_MIRROR/9/BaseOS/x86_64/os

The values come from url.map (lines `$NAME URL`), and for the node's own distribution family from
the sources that apt on the node itself uses.  Source: vztt etc/url.map, sources.list(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed, TemplateError
from pyvz.linux import run

VARIABLE = re.compile(r"\$([A-Z][A-Z0-9_]*)")
OPTIONS = re.compile(r"\[([^\]]*)\]\s*")
URL = re.compile(r"(https?|ftp|file|copy)://?[^\s'\"]+")
TARGET_FORMAT = "$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)"
FAMILIES = {"debian": "DEBIAN", "ubuntu": "UBUNTU"}
KEYRINGS = {
    "DEBIAN": Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "UBUNTU": Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}


class Repository(NamedTuple):
    """One place of packages.

    suite, components: of an apt repository; empty for RPM.  key: file or URL of the signing key,
    empty for the package manager's own choice.  trusted: unsigned packages are taken.
    mirrors: the URL gives a list of mirrors instead of being one.
    """

    url: str
    suite: str = ""
    components: tuple[str, ...] = ()
    key: str = ""
    trusted: bool = False
    mirrors: bool = False


class Variables(NamedTuple):
    """What `$NAME` (or `$NAME/path`, as url.map may say) stands for, and signing keys by URL."""

    values: Mapping[str, str]
    keys: Mapping[str, str] = {}
    proxy_prefix: str = ""  # VZTT_PROXY: a caching server that is put before every URL


def parse_url_map(text: str, source: str) -> dict[str, str]:
    """Return the variables (without `$`) of a url.map; raise TemplateError naming the line."""
    values = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ") if " " in line else line.partition("\t")
        name, value = name.split("\t")[0], line[len(name.split("\t")[0]) :].strip()
        if not VARIABLE.match(name) or not value:
            raise TemplateError(f"{source}, line {number}: '{line}' is not '$NAME value'")
        values[name[1:]] = value.rstrip("/")
    return values


def node_variables(os_release: Mapping[str, str], targets: str) -> Variables:
    """Return the variables that the node's apt sources give for the node's own family.

    TARGETS: output of `apt-get indextargets --format TARGET_FORMAT`.  Before the first `apt-get
    update` the origin is not known; the suite and the component `main` then decide alone.
    """
    family = FAMILIES.get(os_release.get("ID", ""))
    codename = os_release.get("VERSION_CODENAME", "")
    if family is None or not codename:
        return Variables({})
    wanted = {
        codename: f"{family}_MIRROR",
        f"{codename}-updates": f"{family}_UPDATES",
        f"{codename}-security": f"{family}_SECURITY",
    }
    values: dict[str, str] = {}
    keys: dict[str, str] = {}
    for origin, release, uri, signed_by in sorted(_targets(targets), reverse=True):
        name = wanted.get(release)
        if name is None or name in values or origin.lower() not in {"", family.lower()}:
            continue
        values[name] = uri
        if signed_by.startswith("/"):
            keys[uri] = signed_by
    mirror = values.get(f"{family}_MIRROR", "")
    if mirror.endswith("/debian"):
        values["DEB_SERVER"] = mirror.removesuffix("/debian")  # the original templates' variable
    return Variables(values, keys)


def _targets(text: str) -> Iterable[tuple[str, str, str, str]]:
    for line in text.splitlines():
        fields = [field if not field.startswith("$(") else "" for field in line.split("|")]
        if len(fields) == 6 and fields[3] == "main":
            yield fields[0], fields[2], fields[4].rstrip("/"), fields[5]


def read_node_variables(os_release: Path = Path("/etc/os-release")) -> Variables:
    """Return node_variables of this node; empty where apt is not there or says nothing."""
    release = _parse_os_release(os_release)
    if release.get("ID") not in FAMILIES:
        return Variables({})
    argv = ["apt-get", "indextargets", "--format", TARGET_FORMAT, "Created-By: Packages"]
    try:
        return node_variables(release, run.run(argv, timeout=30).stdout)
    except CommandFailed:
        return Variables({})


def _parse_os_release(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, _, value in pairs}


def resolve(
    lines: Iterable[str], variables: Variables, *, template: str, key: str = ""
) -> list[Repository]:
    """Return the repositories that LINES stand for.

    KEY: signing key of lines that name none (may hold variables).  A line marked `[optional=yes]`
    is left out when its variable is not known; raises TemplateError for any other.
    """
    found = []
    for line in lines:
        options, words = _split(line)
        url, missing = _substitute(words[0] if words else "", variables.values)
        if missing and options.get("optional") == "yes":
            continue
        if missing:
            raise unknown_variable(missing, template)
        if not URL.fullmatch(url):
            raise TemplateError(f"{template}: '{line}' does not name a repository by its URL")
        own_key = options.get("signed-by") or variables.keys.get(url) or key
        found.append(
            Repository(
                _proxied(url, variables.proxy_prefix),
                words[1] if len(words) > 1 else "",
                tuple(words[2:]),
                _resolve_key(own_key, variables, template),
                options.get("trusted") == "yes",
                options.get("mirrorlist") == "yes",
            )
        )
    return found


def unknown_variable(name: str, template: str) -> TemplateError:
    """Return the error that says that nobody has told what $NAME is."""
    return TemplateError(
        f"{template}: the repository variable ${name} is not set",
        hint=f"Add a line '${name} URL-OF-YOUR-MIRROR' to /etc/vztt/url.map.",
    )


def _split(line: str) -> tuple[dict[str, str], list[str]]:
    line = line.removeprefix("deb ").strip()
    options: dict[str, str] = {}
    match = OPTIONS.match(line)
    if match:
        pairs = (word.partition("=") for word in match.group(1).split())
        options = {name: value for name, _, value in pairs}
        line = line[match.end() :]
    return options, line.split()


def _substitute(text: str, values: Mapping[str, str]) -> tuple[str, str]:
    """Return TEXT with its variables filled in, and the name of one that is not known."""
    for name in sorted(values, key=len, reverse=True):
        pattern = r"\$" + re.escape(name) + r"(?![A-Z0-9_])"
        text = re.sub(pattern, lambda _, value=values[name]: value, text)  # type: ignore[misc]
    left = VARIABLE.search(text)
    return text, left.group(1) if left else ""


def _resolve_key(key: str, variables: Variables, template: str) -> str:
    text, missing = _substitute(key, variables.values)
    if missing:
        raise unknown_variable(missing, template)
    if text.startswith("/") and not os.access(text, os.R_OK):
        raise TemplateError(
            f"{template}: the signing key {text} is not there",
            hint="Install the distribution's keyring package on this node.",
        )
    return text


def _proxied(url: str, prefix: str) -> str:
    if not prefix or not url.startswith(("http://", "ftp://", "https://")):
        return url
    return prefix.rstrip("/") + "/" + url.split("://", 1)[1]
