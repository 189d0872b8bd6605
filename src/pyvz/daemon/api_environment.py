"""The interface io.pyvz.Environment: containers (and later virtual machines) and what one does.

No `from __future__ import annotations` here: see replies.py.
"""

from collections.abc import AsyncIterator
from typing import Any, TypedDict

from asyncvarlink import FileDescriptor, LastResult, VarlinkInterface, varlinkmethod

from pyvz.container.runtime import ExecRequest
from pyvz.container.runtime import Terminal as TerminalSize
from pyvz.daemon.calls import Api, acting, streaming
from pyvz.daemon.replies import Empty, ExecReply, Option, Terminal, Uuid
from pyvz.daemon.sessions import Program
from pyvz.daemon.tasks import Work
from pyvz.errors import BadValue, EnvironmentNotFound
from pyvz.model.environment import Environment as Identity
from pyvz.model.environment import Kind
from pyvz.operations import (
    clone,
    configure,
    execute,
    lifecycle,
    provision,
    query,
    register,
    relocate,
    statistics,
)
from pyvz.operations.configure import SetRequest
from pyvz.operations.lifecycle import StartOptions, StopOptions
from pyvz.operations.node import Node
from pyvz.operations.provision import CreateRequest


class How(TypedDict):
    """How a stop ended: "stopped", "killed", or "already" (it did not run)."""

    how: str


class Place(TypedDict):
    """Where the root file system is mounted on the node."""

    root: str


class Registered(TypedDict):
    """What was registered."""

    uuid: str
    name: str


class SetReply(TypedDict):
    """What was set, in words; which options take effect at the next start; what was ignored."""

    echo: list[str]
    restart_needed: list[str]
    warnings: list[str]


class ListError(TypedDict):
    """A reference that could not be listed, and why."""

    ref: str
    message: str


class ListReply(TypedDict):
    """One object per environment with the fields that were asked for."""

    rows: list[Any]
    errors: list[ListError]


class StatusReply(TypedDict):
    """exists: false when nothing answers to the reference; the rest is empty then."""

    uuid: str
    kind: str
    status: str
    mounted: bool
    exists: bool


class Statistic(TypedDict):
    """One counter."""

    name: str
    value: Any


class EnvironmentStatistics(TypedDict):
    """The counters of one environment."""

    uuid: str
    rows: list[Statistic]


def _uuid(env: Identity) -> Uuid:
    return {"uuid": env.uuid}


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise BadValue(f"'{text}' is not a kind of environment (ct or vm)") from None


def _pairs(options: list[Option]) -> tuple[tuple[str, str | None], ...]:
    return tuple((option.name, option.value) for option in options)


class Environment(Api, VarlinkInterface, name="io.pyvz.Environment"):
    """Containers and virtual machines.  `ref` is a UUID, a legacy numeric CTID, or a name."""

    # -- looking

    @varlinkmethod(allow_foreign=True)
    async def List(
        self, *, fields: list[str], refs: list[str] | None = None, kind: str | None = None
    ) -> ListReply:
        """Return the raw values of FIELDS (see docs/api.md) for REFS, or for all environments."""
        wanted = None if kind is None else _kind(kind)
        found = await self.query(query.rows, fields, refs=refs or (), kind=wanted)
        errors: list[ListError] = [{"ref": ref, "message": why} for ref, why in found.errors]
        return {"rows": found.rows, "errors": errors}

    @varlinkmethod(return_parameter="info", allow_foreign=True)
    async def Info(self, *, ref: str, full: bool = False) -> object:
        """Return everything about one environment, keyed and nested as `prlctl list -i -j`."""
        return await self.query(query.info, ref, full=full)

    @varlinkmethod
    async def Status(self, *, ref: str) -> StatusReply:
        """Return the state of one environment; never fails for an unknown one."""
        try:
            found = await self.query(query.status, ref)
        except EnvironmentNotFound:
            return {"uuid": "", "kind": "", "status": "", "mounted": False, "exists": False}
        return {
            "uuid": found.uuid,
            "kind": str(found.kind),
            "status": str(found.status),
            "mounted": found.mounted,
            "exists": True,
        }

    @varlinkmethod(return_parameter="statistics", allow_foreign=True)
    async def Statistics(
        self, *, refs: list[str] | None = None, filters: list[str] | None = None
    ) -> list[EnvironmentStatistics]:
        """Return the counters that match FILTERS (shell patterns) of REFS, or of all that run."""
        found = await self.query(statistics.statistics, refs or (), filters or ())
        return [
            {"uuid": uuid, "rows": [{"name": name, "value": value} for name, value in counters]}
            for uuid, counters in found
        ]

    # -- life

    @streaming(Empty)
    def Start(
        self,
        node: Node,
        *,
        ref: str,
        wait: bool = False,
        repair: bool = False,
        force: bool = False,
        skip_fsck: bool = False,
    ) -> Work:
        """Start it.  wait: until the guest has booted; repair: a shell instead of init;
        force: although it is disabled.
        """
        options = StartOptions(wait=wait, repair=repair, force=force, skip_fsck=skip_fsck)
        return Work(
            "start", ref, lambda task: lifecycle.start(node, ref, options=options, progress=task)
        )

    @streaming(How)
    def Stop(  # noqa: PLR0913  the fields of StopOptions
        self,
        node: Node,
        *,
        ref: str,
        kill: bool = False,
        noforce: bool = False,
        force: bool = False,
        skip_umount: bool = False,
        acpi: bool = False,
    ) -> Work:
        """Stop it.  kill: at once; noforce: fail rather than kill when the guest does not end in
        time; force: the opposite of noforce, and the default; skip_umount: leave it mounted.
        acpi: by the power button, without asking the guest agent of a virtual machine.
        """
        options = StopOptions(
            kill=kill, noforce=noforce and not force, skip_umount=skip_umount, acpi=acpi
        )
        return Work(
            "stop",
            ref,
            lambda task: lifecycle.stop(node, ref, options=options, progress=task),
            lambda how: {"how": how},
        )

    @streaming(Empty)
    def Restart(self, node: Node, *, ref: str, wait: bool = False) -> Work:
        """Stop it orderly and start it again."""
        start = StartOptions(wait=wait)
        return Work(
            "restart",
            ref,
            lambda task: lifecycle.restart(node, ref, start_options=start, progress=task),
        )

    @streaming(Empty)
    def Reset(self, node: Node, *, ref: str) -> Work:
        """Kill it and start it again."""
        stop = StopOptions(kill=True)
        return Work(
            "reset",
            ref,
            lambda task: lifecycle.restart(node, ref, stop_options=stop, progress=task),
        )

    @acting(Empty)
    def Pause(self, node: Node, *, ref: str) -> Work:
        """Freeze it in memory."""
        return Work("pause", ref, lambda _: lifecycle.pause(node, ref))

    @streaming(Empty)
    def Resume(self, node: Node, *, ref: str) -> Work:
        """Let a paused one go on, or bring a suspended one back."""
        return Work("resume", ref, lambda task: lifecycle.resume(node, ref, progress=task))

    @acting(Place)
    def Mount(self, node: Node, *, ref: str, readonly: bool | None = None) -> Work:
        """Mount the root file system of one that does not run.

        readonly: without it a container is mounted writable, a virtual machine read-only.
        """
        return Work(
            "mount",
            ref,
            lambda _: lifecycle.mount(node, ref, readonly=readonly),
            lambda env: {"root": str(node.root(env))},
        )

    @acting(Empty)
    def Umount(self, node: Node, *, ref: str) -> Work:
        """Unmount the root file system."""
        return Work("umount", ref, lambda _: lifecycle.umount(node, ref))

    # -- making and changing

    @streaming(Uuid)
    def Create(  # noqa: PLR0913  the fields of CreateRequest
        self,
        node: Node,
        *,
        name: str | None = None,
        kind: str = "ct",
        ostemplate: str | None = None,
        config: str | None = None,
        private: str | None = None,
        root: str | None = None,
        uuid: str | None = None,
        ctid: str | None = None,
        layout: str | None = None,
        pool: str | None = None,
        options: list[Option] = [],  # noqa: B006  read only; gives the parameter its default
        dialect: str = "prlctl",
        no_disk: bool = False,
        source: str | None = None,
    ) -> Work:
        """Make an environment from a template, or a virtual machine of SOURCE (an image, OVA).

        OPTIONS are those of Set.  Can be called off.
        """
        request = CreateRequest(
            name=name,
            kind=_kind(kind),
            ostemplate=ostemplate,
            config=config,
            private=private,
            root=root,
            uuid=uuid,
            ctid=ctid,
            layout=layout,
            pool=pool,
            options=_pairs(options),
            dialect=dialect,
            no_disk=no_disk,
            source=source,
        )
        return Work(
            "create",
            name or ctid or uuid or "",
            lambda task: provision.create(node, request, task),
            _uuid,
            cancellable=True,
        )

    @streaming(Empty)
    def Delete(self, node: Node, *, ref: str, force: bool = False) -> Work:
        """Remove it with all its files.  force: stop it first."""
        return Work(
            "delete", ref, lambda task: provision.delete(node, ref, force=force, progress=task)
        )

    @streaming(Uuid)
    def Clone(  # noqa: PLR0913  the fields of CloneOptions
        self,
        node: Node,
        *,
        ref: str,
        name: str,
        dst: str | None = None,
        template: bool = False,
        linked: bool = False,
        detach: bool = False,
    ) -> Work:
        """Copy it under a new name.  template: the copy is a template.  Can be called off.

        linked: nothing is copied, both share what they have; refused where that is not possible.
        detach: the copy of a virtual machine goes without disks that are not in its home.
        """
        options = clone.CloneOptions(dst, template, linked, detach)
        return Work(
            "clone",
            ref,
            lambda task: clone.clone(node, ref, name, options=options, progress=task),
            _uuid,
            cancellable=True,
        )

    @streaming(Empty)
    def Move(self, node: Node, *, ref: str, dst: str, restart: bool = False) -> Work:
        """Move its files to another directory of the node.  Can be called off.

        restart: one that runs, and goes to another file system, is stopped and started for it
        instead of taking its memory along.
        """
        return Work(
            "move",
            ref,
            lambda task: relocate.move(node, ref, dst, restart=restart, progress=task),
            cancellable=True,
        )

    @acting(Registered)
    def Register(  # noqa: PLR0913  what the caller may choose
        self,
        node: Node,
        *,
        path: str,
        uuid: str | None = None,
        preserve_uuid: bool = False,
        force: bool = False,
        name: str | None = None,
        ctid: str | None = None,
    ) -> Work:
        """Make the environment in the directory PATH known to the node."""
        return Work(
            "register",
            path,
            lambda _: register.register(
                node,
                path,
                uuid=uuid,
                preserve_uuid=preserve_uuid,
                force=force,
                name=name,
                ctid=ctid,
            ),
            lambda env: {"uuid": env.uuid, "name": env.name},
        )

    @acting(Empty)
    def Unregister(self, node: Node, *, ref: str) -> Work:
        """Forget it; its files stay."""
        return Work("unregister", ref, lambda _: register.unregister(node, ref))

    @acting(SetReply)
    def Set(
        self,
        node: Node,
        *,
        ref: str,
        options: list[Option],
        dialect: str = "prlctl",
        save: bool = True,
        setmode: str | None = None,
    ) -> Work:
        """Change parameters, live and (save) in its configuration.  Nothing or everything."""
        request = SetRequest(dialect, _pairs(options), save, setmode)
        return Work(
            "set",
            ref,
            lambda task: configure.set_options(node, ref, request, task),
            lambda done: {name: list(lines) for name, lines in done._asdict().items()},
        )

    # -- inside

    @varlinkmethod(delay_generator=False, allow_foreign=True)
    async def Exec(  # noqa: PLR0913  the fields of ExecRequest
        self,
        *,
        ref: str,
        argv: list[str],
        env: list[str] = [],  # noqa: B006  read only; gives the parameter its default
        cwd: str = "/",
        user: str | None = None,
        terminal: Terminal | None = None,
        as_init: bool = False,
        offline: bool = False,
        origin: str = "",
    ) -> AsyncIterator[ExecReply]:
        """Run a program inside.  The first reply names the session and brings its descriptors
        (stdin, stdout, stderr; or one terminal) in the order of `streams`; the last has the
        exit status.  A client that goes away ends the program: SIGHUP, 5 s later SIGKILL.

        Call it with `more`.
        """
        request = ExecRequest(
            argv=tuple(argv),
            env=_variables(env, terminal),
            cwd=cwd,
            user=user,
            terminal=_terminal(terminal),
            as_init=as_init,
        )
        program = Program(self.node, ref, request, offline=offline)
        work = Work("exec", ref, lambda _: program.open(), origin=origin)
        sessions = self.services.sessions
        async with sessions.opened(program, self.services.tasks.start(work, self.caller)):
            yield {"session": program.describe()}
            status = await program.exit_status()
            raise LastResult({"result": {"exit_status": status}})

    @varlinkmethod
    async def SignalSession(self, *, session: str, signal: int) -> Empty:
        """Send a signal to the program of a session (call it on another connection)."""
        await self.services.sessions.signal(session, signal)
        return {}

    @varlinkmethod(return_parameter="stream")
    async def Console(self, *, ref: str) -> FileDescriptor:
        """Return a socket that is the console: first what it said lately, then live."""
        fd: int = await self.query(execute.console, ref)
        return FileDescriptor(fd, should_close=True)


def _terminal(terminal: Terminal | None) -> TerminalSize | None:
    return None if terminal is None else TerminalSize(terminal.rows, terminal.cols)


def _variables(env: list[str], terminal: Terminal | None) -> tuple[tuple[str, str], ...]:
    """Return the environment as pairs; raise BadValue for what is not NAME=VALUE."""
    pairs = []
    for text in env:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise BadValue(f"'{text}' is not of the form NAME=VALUE")
        pairs.append((name, value))
    if terminal is not None and terminal.term:
        pairs.append(("TERM", terminal.term))
    return tuple(pairs)
