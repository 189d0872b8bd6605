"""Action scripts: programs of the administrator that run when a container comes and goes.

    premount mount umount postumount   on the node: <etc>/conf/vps.<action> for all containers and
                                       <home>/scripts/<action> for one
    start stop                         inside the container: <home>/scripts/<action>

Order: premount and mount run the global script first, umount and postumount the container's own.
A script that is missing or not executable is skipped.  Environment on the node: VEID and
VE_CONFFILE; other variables are read from that file.  Exit status 39 says "skip the action"
(premount: the container's administrator mounts by himself); any other but 0 is a failure.
Source: libvzctl, run_action_scripts() in util.c, vzctl2_env_mount() in fs.c, start in env.c.

Security: the node's scripts run as root, so they must belong to root and be writable by nobody
else, and so must `<home>/scripts/`.  That directory and what is in it may not be links: the
container's own files (`<home>/fs/`) carry root's id on disk, and a link into them would let the
container's root run programs on the node.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final

from pyvz.container.runtime import ExecRequest
from pyvz.errors import ActionScriptFailed, VZError
from pyvz.linux import run as programs
from pyvz.model.environment import Environment
from pyvz.operations.node import Node
from pyvz.operations.program import finish

log = logging.getLogger(__name__)

SKIP: Final = 39  # VZCTL_E_SKIP_ACTION, libvzctl vzerror.h
TIME_LIMIT: Final = 300.0  # seconds for one script; the lease of the container is held meanwhile
MAX_SIZE: Final = 1 << 20  # bytes of a start or stop script
# libvzctl hands every script this environment (envp_bash in util.c), without its "." in PATH.
ENVIRONMENT: Final = {
    "HOME": "/",
    "TERM": "linux",
    "PATH": "/usr/local/sbin:/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin",
}
_GLOBAL_FIRST: Final = {"premount": True, "mount": True, "umount": False, "postumount": False}
_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "ksh", "zsh"})
_MAX_ARGUMENT: Final = 120_000  # MAX_ARG_STRLEN is 128 KiB (include/uapi/linux/binfmts.h)


def run(node: Node, env: Environment, action: str) -> bool:
    """Run the scripts of `action` on the node; return True when the last one said "skip".

    action: premount, mount, umount or postumount.  The caller holds the lease.
    Raises ActionScriptFailed (which script, its status and last words).
    """
    own = _checked(env.home / "scripts" / action, inside=env.home)
    for_all = _checked(node.paths.conf / f"vps.{action}", inside=None)
    scripts = (for_all, own) if _GLOBAL_FIRST[action] else (own, for_all)
    skip = False
    for script in scripts:
        if script is not None:
            skip = _run_one(node, env, script)
    return skip


def run_ignoring_failure(node: Node, env: Environment, action: str) -> None:
    """Run the scripts of `action` where something else has failed already: only log their own."""
    try:
        run(node, env, action)
    except (VZError, OSError) as error:
        log.warning("%s: %s", env.name, error)


def run_inside(node: Node, env: Environment, action: str) -> None:
    """Run the container's own `start` or `stop` script inside the running container.

    The script's text travels, not the file: nothing of the node is visible inside.
    Raises ActionScriptFailed.
    """
    script = _checked(env.home / "scripts" / action, inside=env.home)
    if script is None:
        return
    text = _read(script)
    argv, data = command(text)
    environment = tuple(ENVIRONMENT.items())
    log.info("running %s inside %s", script, env.name)
    try:
        session = node.runtime.exec(env.uuid, ExecRequest(argv=argv, env=environment, cwd="/"))
        ended = finish(session, data, timeout=TIME_LIMIT)
    except (VZError, OSError) as error:
        raise _failed(script, str(error)) from error
    if ended.code not in {0, SKIP}:
        raise _failed(script, f"it ended with status {ended.code}", ended.output)


def command(text: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return (argv, standard input) that run the script `text` where no file can be seen.

    A shell gets the text as an argument and keeps its standard input empty; another interpreter,
    and a shell with a very long script, reads it as /dev/stdin.
    """
    words = ["/bin/sh"]
    if text.startswith(b"#!"):
        words = text.splitlines()[0][2:].decode("utf-8", "surrogateescape").split() or words
    is_shell = any(Path(word).name in _SHELLS for word in words)
    if is_shell and len(text) <= _MAX_ARGUMENT and b"\0" not in text:
        return (*words, "-c", text.decode("utf-8", "surrogateescape"), words[0]), b""
    return (*words, "/dev/stdin"), text


def _run_one(node: Node, env: Environment, script: Path) -> bool:
    variables = {"VEID": env.envid, "VE_CONFFILE": os.fspath(node.registry.config_path(env))}
    log.info("running %s for %s", script, env.name)
    try:
        ended = programs.run([script], env=ENVIRONMENT | variables, timeout=TIME_LIMIT, check=False)
    except VZError as error:
        raise _failed(script, error.message, error.details) from error
    output = (ended.stderr + ended.stdout).strip()
    if output:
        log.info("%s: %s", script, output)
    if ended.code not in {0, SKIP}:
        raise _failed(script, f"it ended with status {ended.code}", output)
    return ended.code == SKIP


def _checked(script: Path, *, inside: Path | None) -> Path | None:
    """Return `script` when it may run, None when there is nothing to run; refuse what is unsafe.

    inside: the home to which the script belongs; None: a script of the node's administrator,
    which may be a link.
    """
    try:
        if inside is not None:
            _check_safe(script.parent, os.lstat(script.parent), directory=True)
            status = os.lstat(script)
        else:
            status = script.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    _check_safe(script, status, directory=False)
    return script if status.st_mode & 0o111 else None


def _check_safe(path: Path, status: os.stat_result, *, directory: bool) -> None:
    right_kind = stat.S_ISDIR if directory else stat.S_ISREG
    if not right_kind(status.st_mode):
        kind = "directory" if directory else "file"
        raise _unsafe(path, f"it is not a {kind} of its own (links are refused)")
    if status.st_uid not in {0, os.geteuid()}:
        raise _unsafe(path, f"it belongs to user {status.st_uid}, not to root")
    if status.st_mode & 0o022:
        raise _unsafe(path, "others than its owner may write it")


def _read(script: Path) -> bytes:
    with script.open("rb") as stream:
        text = stream.read(MAX_SIZE + 1)
    if len(text) > MAX_SIZE:
        raise _failed(script, f"it is longer than {MAX_SIZE} bytes")
    return text


def _unsafe(path: Path, why: str) -> ActionScriptFailed:
    return ActionScriptFailed(
        f"The action script {path} was not run: {why}",
        hint=f"Make it safe (chown root:root, chmod 755) or remove it: {path}",
    )


def _failed(script: Path, why: str, output: str = "") -> ActionScriptFailed:
    last = "\n".join(output.strip().splitlines()[-20:])
    return ActionScriptFailed(f"The action script {script} failed: {why}", details=last)
