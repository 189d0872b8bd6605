"""The keeper's side of CRIU: forks `criu swrk`, and takes restored inits for its own.

CRIU must be a child of the keeper, because a restored init becomes its sibling (rst_sibling), and
needs a mount namespace of its own, in which a restored container's root is a mount point and every
tree of the node that it has mounted stands id-mapped below one directory:

    /mnt/<name>        root, and one for each external mount (a tmpfs that only CRIU sees)

What is said to CRIU is vzd's business.  Its end of the socket is made after the fork, because CRIU
takes the descriptors in a request for those of the socket's maker: so they are CRIU's own.

    3  the socket   4  the directory of the images   5...  what the request brought along
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pyvz.container import confine, launch, protocol
from pyvz.container.launch import Launch, StepError
from pyvz.container.loop import Loop
from pyvz.container.reply import Reply
from pyvz.linux import namespace, overlay, process, syscall

if TYPE_CHECKING:
    from pyvz.container.custody import Keeper

SOCKET, IMAGES, FIRST_FD = 3, 4, 5
# With a user namespace CRIU looks some paths up as the container's root: everybody may come here.
SCRATCH = "/mnt"
_HIGH = 64  # descriptors are parked above it before they get their places
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class Worker(NamedTuple):
    """A running `criu swrk`.  images: its directory."""

    uuid: str
    pid: int
    started: int
    images: str = ""  # what a keeper of an older version says


class Workers:
    """Those of one keeper."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._running: dict[int, Worker] = {}
        self._starting: list[Launch] = []

    def __bool__(self) -> bool:
        return bool(self._running or self._starting)

    def list(self) -> list[dict[str, Any]]:
        """Return what there is, as JSON-able data."""
        return [each._asdict() for each in self._running.values()]

    def start(self, message: Mapping[str, Any], fds: Sequence[int], reply: Reply) -> Launch:
        """Fork one; REPLY is answered with its socket when it has been executed."""
        with ExitStack() as stack:
            trees = _trees(stack, message["mounts"])
            made = self._fork(message, [fd for _, fd in trees], fds)
        self._starting.append(made)
        whose = str(message["uuid"]), str(message["images"])
        made.done = lambda child, error: self._started(child, error, whose, reply)
        return made

    def reaped(self, pid: int) -> Worker | None:
        """Take note of the end of a child; returns the worker that it was."""
        for each in [each for each in self._starting if each.owns(pid)]:
            each.reaped(pid)
        return self._running.pop(pid, None)

    def owns(self, pid: int) -> bool:
        """Whether a child is one of ours."""
        return pid in self._running or any(each.owns(pid) for each in self._starting)

    def _fork(self, message: Mapping[str, Any], trees: Sequence[int], fds: Sequence[int]) -> Launch:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                with launch.step("forking"):
                    pid, pidfd = syscall.clone3(0)
            except BaseException:
                ours.close()
                raise
            if pid == 0:
                ours.close()
                _become_criu(theirs, message, trees, fds)
        return Launch(self._loop, ours, pid, pidfd, session=False)

    def _started(
        self, made: Launch, error: StepError | None, whose: tuple[str, str], reply: Reply
    ) -> None:
        self._starting.remove(made)
        if error is not None:
            reply.fail(error)
            return
        os.close(made.pidfd)
        self._running[made.pid] = Worker(whose[0], made.pid, made.started, whose[1])
        reply.ok({"pid": made.pid, "started": made.started}, [made.terminal])


def end_orphans(dead: Worker, keeper: Keeper) -> None:
    """End what a CRIU that was killed had begun to restore: children that nobody knows.

    While another CRIU is at work, only those that are still of the dead one's session.
    """
    known = {each.record.pid for each in keeper.containers.values()}
    known |= {each.pid for each in keeper.sessions.values()}
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    for pid in children:
        starting = any(each.owns(pid) for each in keeper.launches)
        if pid in known or starting or keeper.workers.owns(pid):
            continue
        with contextlib.suppress(OSError):
            if not keeper.workers or os.getsid(pid) == dead.pid:
                os.kill(pid, signal.SIGKILL)


def open_init(pid: int) -> tuple[int, int]:
    """Return a pidfd and the start time of a restored init that is ours to adopt; StepError."""
    with launch.step("adopting the restored init"):
        pidfd = os.pidfd_open(pid)
        try:
            return pidfd, process.start_time(pid)
        except BaseException:
            os.close(pidfd)
            raise


def _trees(stack: ExitStack, mounts: Mapping[str, Any] | None) -> list[tuple[str, int]]:
    """The detached trees of a restore by name, id-mapped; closed by STACK."""
    if mounts is None:
        return []
    userns = _user_namespace(stack, mounts["ids"])
    made = []
    for tree in mounts["trees"]:
        with launch.step(f"preparing the mount of {tree['source']}"):
            shifted = False
            if userns is not None and tree["name"] == "root":
                first = mounts["ids"][0]
                shifted = overlay.shift(tree["source"], userns, (first, first))
            fd = namespace.detached_tree(
                tree["source"],
                userns=userns if tree["idmap"] and not shifted else None,
                attributes=("ro",) * bool(tree["read_only"]) + tuple(tree["attributes"]),
                recursive=False,
            )
        stack.callback(os.close, fd)
        made.append((str(tree["name"]), fd))
    return made


def _user_namespace(stack: ExitStack, ids: Sequence[int] | None) -> int | None:
    """A user namespace with the container's id map, for the mounts; its maker ends at once."""
    if ids is None:
        return None
    with launch.step("making the id map of the mounts"):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid, pidfd = syscall.clone3(syscall.CLONE_NEWUSER)
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        try:
            namespace.write_id_maps(pid, ids[0], ids[1])
            opened = namespace.open_user(pid)
        finally:
            protocol.close_all((reader, writer, pidfd))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    stack.callback(os.close, opened)
    return opened


def _become_criu(
    sock: socket.socket, message: Mapping[str, Any], trees: Sequence[int], fds: Sequence[int]
) -> NoReturn:
    progress = confine.Progress(sock)
    confine.run_child(progress, lambda: _execute(progress, message, trees, fds))


def _execute(
    progress: confine.Progress,
    message: Mapping[str, Any],
    trees: Sequence[int],
    fds: Sequence[int],
) -> None:
    progress.step = "entering a mount namespace"
    os.setsid()
    syscall.unshare(syscall.CLONE_NEWNS)
    # What is unmounted on the node has to go here too: else we would hold others' disks.
    syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_SLAVE)
    progress.step = f"opening {message['images']}"
    images = os.open(message["images"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if message["mounts"] is not None:
        progress.step = "mounting what the container has of the node"
        _mount(message["mounts"], trees)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    progress.step = f"executing {message['program']}"
    protocol.send(progress.sock, {"terminal": True}, [ours.detach()])
    told = _park(progress.sock.fileno())
    null = _park(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    kept = [_park(fd) for fd in (theirs.fileno(), images, *fds)]
    for number, fd in enumerate((null, null), 0):
        os.dup2(fd, number)
    for number, fd in enumerate(kept, SOCKET):
        os.dup2(fd, number)
    syscall.close_range(SOCKET + len(kept), flags=syscall.CLOSE_RANGE_CLOEXEC)
    with socket.socket(fileno=told) as speaker:
        protocol.send(speaker, {"ready": True})
        program = message["program"]
        os.execve(program, [program, "swrk", str(SOCKET)], _ENVIRONMENT)  # noqa: S606


def _park(fd: int) -> int:
    """The same description at a number that none of those wanted can be."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)


def _mount(mounts: Mapping[str, Any], trees: Sequence[int]) -> None:
    """Attach the trees below a tmpfs on the scratch directory, which nobody else sees."""
    syscall.mount("tmpfs", SCRATCH, "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=755")
    for tree, fd in zip(mounts["trees"], trees, strict=True):
        place = f"{SCRATCH}/{tree['name']}"
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(place, 0o755)
        else:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        syscall.move_mount(fd, "", syscall.AT_FDCWD, place)
        with contextlib.suppress(OSError):
            os.close(fd)
