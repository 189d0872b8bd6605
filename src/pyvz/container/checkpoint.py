"""Dump and restore of containers: CRIU, the keeper and the cgroups put together.

Who does what, and the order of events, is told in docs/design/checkpoint.md.  Thread-safe; takes
no lease: the caller holds the environment's.  Every wait has a deadline.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyvz.container import criu as programs
from pyvz.container import criu_pb2, criuimages, criurequest, criuwords, fifos, protocol, swrk
from pyvz.container import frame as frames
from pyvz.container.client import KeeperClient, KeeperFailure
from pyvz.container.criu import Criu
from pyvz.container.criuimages import Stats
from pyvz.container.criurequest import DumpRequest
from pyvz.container.criurpc import CriuConnection
from pyvz.container.frame import Frame
from pyvz.container.runtime import Init, NetworkAccess, Runtime
from pyvz.container.spec import ContainerSpec
from pyvz.errors import CheckpointError, NotNow, RestoreError
from pyvz.linux import cgroup_inner, pressure, process, run
from pyvz.store.paths import Paths

_SILENCE = 900.0  # seconds: a dump says nothing while it writes memory
_SERVING = 7 * 86400.0  # nor while it serves pages; whoever fetches them has a deadline
_ROOT = "root"
LAZY = "lazy-pages"
_KERNEL = ("/proc/", "/sys/")
_KEPT_LOG = 4 << 20  # bytes

logger = logging.getLogger(__name__)


class CriuFeatures(NamedTuple):
    """mem_track: the kernel knows which pages changed (pre-copy).  lazy_pages: userfaultfd."""

    mem_track: bool
    lazy_pages: bool


class RestoreRoot(NamedTuple):
    """What a restoring CRIU needs mounted: the keeper's message, and the places by name."""

    mounts: dict[str, Any]
    places: dict[str, str]
    root: str


class DumpHooks(NamedTuple):
    """What is done in the course of a dump; what one raises makes the dump fail.

    network_lock: the processes stand still: unplug.  frozen: the images are complete; False lets
    the container go on.  network_unlock: it goes on: plug in.
    """

    network_lock: Callable[[], None] = lambda: None
    frozen: Callable[[], bool] = lambda: True
    network_unlock: Callable[[], None] = lambda: None


class RestoreHooks(NamedTuple):
    """What is done in the course of a restore; what one raises makes it fail.

    namespaces: furnish the network namespace, but do not plug it in.  adopted: all is there and
    nothing runs yet.  network_unlock: sockets are whole: plug in.
    """

    namespaces: Callable[[NetworkAccess], None] = lambda _access: None
    adopted: Callable[[Init], None] = lambda _init: None
    network_unlock: Callable[[], None] = lambda: None


class Worker:
    """A `criu swrk` that waits for its one request."""

    def __init__(
        self, criu: Criu, images: Path, connection: CriuConnection, root: RestoreRoot | None
    ) -> None:
        self.criu = criu
        self.images = images
        self.connection = connection
        self.root = root

    @staticmethod
    def number(index: int) -> int:
        """Return the number inside CRIU of the index-th descriptor that it was given."""
        return swrk.FIRST_FD + index


class Checkpoint:
    """The engine of dump and restore on one node."""

    def __init__(self, runtime: Runtime, keeper: KeeperClient, paths: Paths) -> None:
        self._runtime = runtime
        self._keeper = keeper
        self._paths = paths

    # -- what there is --------------------------------------------------------------------------

    def program(self) -> Criu:
        """Return the CRIU to use; raises Unsupported with the reasons and what to do."""
        return programs.find(self._paths.run).require()

    def row(self) -> tuple[str, str, str]:
        """Return the verdict of the test of CRIU as `prlsrvctl info` prints it."""
        verdict = programs.find(self._paths.run)
        if verdict.chosen is not None:
            found = verdict.chosen
            return "Suspend and resume (CRIU)", found.release, f"tested: {found.path}"
        return "Suspend and resume (CRIU)", "no", verdict.words()

    def features(self) -> CriuFeatures:
        """Ask CRIU what this kernel lets it do."""
        with self.worker("features", self._paths.run) as worker:
            answer = worker.connection.call(criurequest.features(), timeout=30.0)
        found = answer.features
        return CriuFeatures(found.mem_track, found.lazy_pages)

    def workers(self, uuid: str) -> list[swrk.Worker]:
        """Return the CRIU processes that are at work on a container."""
        rows = self._keeper.call("list").data["workers"]
        return [swrk.Worker(**row) for row in rows if row["uuid"] == uuid]

    def settle(self, uuid: str, timeout: float) -> None:
        """Wait until no CRIU of a vzd that was killed is at work any more; end it if it must be."""
        deadline = time.monotonic() + timeout
        while (left := self.workers(uuid)) and time.monotonic() < deadline:
            for each in left:
                fifos.let_go(Path(each.images))
            time.sleep(0.02)
        for each in left:
            with suppress(ProcessLookupError), process.Pidfd(each.pid, each.started) as handle:
                handle.signal(signal.SIGKILL)
                handle.wait(10.0)

    @contextmanager
    def worker(
        self,
        uuid: str,
        images: Path,
        *,
        root: RestoreRoot | None = None,
        fds: Sequence[int] = (),
    ) -> Iterator[Worker]:
        """Have a CRIU started and waiting, with `images` as its directory; ended at the end.

        fds: further descriptors that it gets (Worker.number).
        """
        criu = self.program()
        try:
            answer = self._keeper.call(
                "criu",
                timeout=protocol.SETUP_TIMEOUT + 10.0,
                fds=fds,
                uuid=uuid,
                program=criu.path,
                images=os.fspath(images),
                mounts=None if root is None else root.mounts,
            )
        except KeeperFailure as failure:
            raise CheckpointError(f"CRIU could not be started: {failure}") from failure
        connection = CriuConnection(answer.fds[0], answer.data["pid"], answer.data["started"])
        try:
            yield Worker(criu, images, connection, root)
        finally:
            connection.close()

    def sessions(self, uuid: str) -> list[str]:
        """Return the ids of the programs of exec and enter that run in a container."""
        rows = self._keeper.call("list").data["sessions"]
        return [row["id"] for row in rows if row["uuid"] == uuid]

    def hang_up(self, uuid: str, timeout: float = 5.0) -> None:
        """End the programs of exec and enter: SIGHUP, and SIGKILL to what has not ended in time."""
        deadline = time.monotonic() + timeout
        for number in (signal.SIGHUP, signal.SIGKILL):
            for name in self.sessions(uuid):
                with suppress(KeeperFailure):
                    self._keeper.call("signal_session", session=name, number=int(number))
            while self.sessions(uuid) and time.monotonic() < deadline:
                time.sleep(0.02)
            deadline += timeout

    # -- dump -----------------------------------------------------------------------------------

    def frame(self, spec: ContainerSpec) -> Frame:
        """Describe a running container for its restore; raises NotRunning."""
        try:
            record = self._keeper.call("record", uuid=spec.uuid).data
        except KeeperFailure as failure:
            raise CheckpointError(f"The keeper does not know the container: {failure}") from failure
        top = self._runtime.cgroup_directory(spec.uuid)
        made = frames.Made(record, self._runtime.cgroup_path(spec.uuid), cgroup_inner.save(top))
        return frames.describe(self._runtime.with_node_binds(spec), made, self.program().release)

    def dump(self, worker: Worker, request: DumpRequest, hooks: DumpHooks) -> bool:
        """Dump a container; True when hooks.frozen() said so and its processes are gone.

        With leave_running they go on.  Raises CheckpointError: the container goes on; NotNow: and
        may be dumped in a moment.
        """
        request.frame.save(worker.images)
        told = kept = False

        def notify(event: str, _pid: int, fds: list[int]) -> bool:
            nonlocal told, kept
            protocol.close_all(fds)
            if event == "network-lock":
                hooks.network_lock()
            elif event == "network-unlock":
                hooks.network_unlock()
            elif event == "post-dump":
                kept, told = hooks.frozen(), True
                return kept
            return True

        message = criurequest.dump(request, worker.criu, int(request.frame.record["pid"]))
        if request.lazy_pages and request.page_fd is not None:
            # The field of RPC is ignored with lazy_pages, and CRIU would listen on a port.
            own = worker.images / "criu.conf"
            own.write_text(f"ps-socket {request.page_fd}\n")
            message.opts.config_file = os.fspath(own)
        patience = _SERVING if request.lazy_pages else _SILENCE
        response = worker.connection.call(message, notify, timeout=patience)
        if response.success:
            return True
        if told and not kept:
            return False
        raise self._dump_error(worker, request.frame.uuid)

    def pre_dump(self, worker: Worker, request: DumpRequest) -> Stats | None:
        """Copy the memory of a running container, which goes on; only where mem_track is there.

        Raises CheckpointError.
        """
        request.frame.save(worker.images)
        message = criurequest.pre_dump(request, worker.criu, int(request.frame.record["pid"]))
        response = self._asked(worker, message, None)
        if not response.success:
            raise self._dump_error(worker, request.frame.uuid)
        return criuimages.dump_stats(worker.images)

    # -- restore --------------------------------------------------------------------------------

    def root(self, spec: ContainerSpec, frame: Frame) -> RestoreRoot:
        """Return what a restore of `frame` as `spec` needs mounted.

        Raises RestoreError for an external mount that the specification does not have.
        """
        spec = self._runtime.with_node_binds(spec)
        found = frames.sources(spec)
        binds = {bind.target: bind for bind in spec.binds}
        tree = {"read_only": False, "attributes": (), "idmap": spec.ids is not None}
        trees: list[dict[str, Any]] = [{**tree, "name": _ROOT, "source": os.fspath(spec.root)}]
        places: dict[str, str] = {}
        for name, target in frame.externals:
            if target not in found and target == frames.CONSOLE:
                places[name] = os.devnull
                continue
            if target not in found and target.startswith(_KERNEL):
                places[name] = target  # a file of lxcfs, which is not there: the kernel's own
                continue
            if target not in found:
                raise RestoreError(
                    f"{target} of the container came from the node, and its configuration does not"
                    " say any more where from",
                    hint="Set it as it was when it was suspended.",
                )
            places[name] = found[target]
            if (bind := binds.get(target)) is None:
                continue
            wanted = {
                "name": name,
                "source": found[target],
                "idmap": bind.idmap,
                "read_only": bind.read_only,
                "attributes": bind.attributes,
            }
            trees.append(wanted)
            places[name] = f"{swrk.SCRATCH}/{name}"
        ids = None if spec.ids is None else [spec.ids.first, spec.ids.count]
        mounts = {"ids": ids, "trees": trees}
        return RestoreRoot(mounts, places, f"{swrk.SCRATCH}/{_ROOT}")

    def restore(
        self,
        worker: Worker,
        spec: ContainerSpec,
        frame: Frame,
        hooks: RestoreHooks,
        *,
        lazy_pages: bool = False,
    ) -> Init:
        """Bring a container back from the images of `worker`; returns when it runs.

        Its cgroups are made and limited here.  Raises RestoreError, and what a hook raises: then
        nothing of it is left but what hooks did, and the images are as they were.
        """
        if worker.root is None:
            raise RestoreError("A worker for a dump cannot restore")
        criuimages.mend_timers(worker.images)
        criuimages.open_executables(worker.images)
        criuimages.forget_deleted(worker.images)
        criuimages.root_cgroup_binds(worker.images)
        if spec.ids is not None and frame.ids is not None and frame.ids[0] != spec.ids.first:
            criuimages.map_ids(worker.images, spec.ids.first, spec.ids.count)
        with ExitStack() as undo:
            undo.callback(self._runtime.undo_start, spec.uuid)
            self._runtime.make_cgroups(spec)
            restored = _Restored(self, spec, frame, hooks)
            message = criurequest.restore(
                frame,
                worker.criu,
                worker.root.places,
                root=worker.root.root,
                cgroup=self._runtime.cgroup_path(spec.uuid),
                lazy=lazy_pages,
            )
            try:
                response = self._asked(worker, message, restored.notify)
            finally:
                restored.close()
            if not response.success or restored.init is None:
                raise self._restore_error(worker, spec.uuid)
            undo.pop_all()
        return restored.init

    def adopt(self, spec: ContainerSpec, frame: Frame, pid: int, master: int | None) -> Init:
        """Have the keeper take a restored init, which stands still, for its own."""
        record = {**frame.record, "uuid": spec.uuid, "pid": pid}
        record["log"] = None if spec.log is None else os.fspath(spec.log)
        fds = () if master is None else (master,)
        try:
            started = self._keeper.adopt(spec.uuid, pid, record, fds)
        except KeeperFailure as failure:
            raise RestoreError(f"The restored container was not taken over: {failure}") from failure
        return Init(pid, started)

    @contextmanager
    def network_of(self, pid: int) -> Iterator[NetworkAccess]:
        """Give a way into the network of an init that is being restored."""
        try:
            fds = self._keeper.call("network", uuid="", pid=pid).fds
        except KeeperFailure as failure:
            raise RestoreError(f"The network cannot be reached: {failure}") from failure
        try:
            yield NetworkAccess(pid, *fds)
        finally:
            protocol.close_all(fds)

    def own(self, spec: ContainerSpec, frame: Frame) -> None:
        """Let the container's root have the cgroups that CRIU has made, before it opens them."""
        if spec.ids is not None:
            top = self._runtime.cgroup_directory(spec.uuid)
            cgroup_inner.own(top, frame.ids or (spec.ids.first, 0), spec.ids.first)

    def pass_on(self, spec: ContainerSpec, frame: Frame) -> None:
        """Enable the controllers inside, before programs open the files that come with them.

        Not before CRIU has put the init where it was: it goes through the topmost cgroup.
        """
        top = self._runtime.cgroup_directory(spec.uuid)
        if cgroup_inner.passes_on(frame.inner):
            for what in cgroup_inner.enable(top, frame.inner):
                logger.warning("%s: a controller could not be enabled: %s", spec.uuid, what)
            self.own(spec, frame)

    def give_back(self, spec: ContainerSpec, frame: Frame) -> None:
        """Put back what CRIU does not restore of the cgroups inside."""
        top = self._runtime.cgroup_directory(spec.uuid)
        if spec.ids is not None:
            cgroup_inner.give_back(top)
        pressure.watch_again(top)
        for file in cgroup_inner.restore(top, frame.inner):
            logger.warning("%s: the limit %s could not be put back", spec.uuid, file)

    # -- helpers of migration -------------------------------------------------------------------

    def lazy_pages(self, images: Path, fd: int, *kept: int) -> run.Process:
        """Start what fetches pages over a connected socket for a restore with lazy_pages.

        kept: descriptors that it only holds.

        It listens when <images>/lazy-pages.socket is there, and ends when all pages are.
        """
        return self._helper(LAZY, images, fd, *kept)

    def page_server(self, images: Path, fd: int) -> run.Process:
        """Start what writes pages that come over a connected socket into `images`."""
        return self._helper("page-server", images, fd)

    def _helper(self, verb: str, images: Path, fd: int, *kept: int) -> run.Process:
        # fmt: off
        argv = [self.program().path, verb, "--images-dir", os.fspath(images),
                "--work-dir", os.fspath(images), "--ps-socket", str(fd),
                "--log-file", f"{verb}.log", "-v4"]
        # fmt: on
        if verb == LAZY:
            argv.append("--page-server")
        return run.start(argv, pass_fds=(fd, *kept))

    # -- parts ----------------------------------------------------------------------------------

    def _asked(
        self,
        worker: Worker,
        message: criu_pb2.criu_req,
        notify: Callable[[str, int, list[int]], bool] | None,
    ) -> criu_pb2.criu_resp:
        return worker.connection.call(message, notify, timeout=_SILENCE)

    def _dump_error(self, worker: Worker, uuid: str) -> CheckpointError:
        words, details = self._explain(worker, uuid, criurequest.DUMP_LOG)
        return (NotNow if words.passing else CheckpointError)(
            f"The container could not be suspended: {words.why}",
            details=details,
            hint=words.hint,
        )

    def _restore_error(self, worker: Worker, uuid: str) -> RestoreError:
        words, details = self._explain(worker, uuid, criurequest.RESTORE_LOG)
        return RestoreError(
            f"The container could not be resumed: {words.why}", details=details, hint=words.hint
        )

    def _explain(self, worker: Worker, uuid: str, name: str) -> tuple[criuwords.Words, str]:
        """Explain a failure, and keep CRIU's log where the administrator finds it."""
        log = worker.images / name
        words = criuwords.explain(log)
        kept = self._paths.log / f"{uuid}.{name}"
        with suppress(OSError):
            with log.open("rb") as source:
                source.seek(max(0, log.stat().st_size - _KEPT_LOG))
                kept.write_bytes(source.read())
            kept.chmod(0o600)
        return words, "\n".join(filter(None, (words.line, f"CRIU's log is in {kept}")))


class _Restored:
    """One restore on its way: what CRIU's events mean."""

    def __init__(
        self, engine: Checkpoint, spec: ContainerSpec, frame: Frame, hooks: RestoreHooks
    ) -> None:
        self._engine = engine
        self._spec = spec
        self._frame = frame
        self._hooks = hooks
        self._pid = 0
        self._master: int | None = None
        self.init: Init | None = None

    def notify(self, event: str, pid: int, fds: list[int]) -> bool:
        """Do what an event calls for."""
        self._pid = pid or self._pid
        if event == "orphan-pts-master" and fds and self._master is None:
            self._master = fds.pop()
        protocol.close_all(fds)
        if event == "pre-restore":
            self._engine.own(self._spec, self._frame)
        elif event == "setup-namespaces":
            with self._engine.network_of(self._pid) as access:
                self._hooks.namespaces(access)
        elif event == "post-setup-namespaces":
            self._engine.pass_on(self._spec, self._frame)
        elif event == "post-restore":
            self._engine.give_back(self._spec, self._frame)
            self.init = self._engine.adopt(self._spec, self._frame, self._pid, self._master)
            self._hooks.adopted(self.init)
        elif event == "network-unlock":
            self._hooks.network_unlock()
        return True

    def close(self) -> None:
        """Close what nobody took."""
        if self._master is not None:
            os.close(self._master)
            self._master = None
