"""The child side of exec and enter: from the keeper's fork to the program inside the container.

    keeper --fork--> between: joins the cgroups, closes what is the node's, enters the namespaces
                       |      of the container's init, forks once more (pid namespace) and ends
                       +--> program: a child of the keeper (CLONE_PARENT), which so gets its wait
                            status; session, terminal, user, capabilities, seccomp, execve

Nothing of the guest is loaded or run by us before execve: users are looked up by reading its
/etc/passwd.  From the moment that it can be seen inside, the process is not dumpable, so that
nobody inside may trace it or reach the node through its /proc entry; a mere setresuid does not
change that (the memory belongs to the node's user namespace until execve).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from pyvz.container import confine, protocol
from pyvz.container.ledger import Record
from pyvz.linux import syscall

_PASSWD_LIMIT = 1 << 20
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit status of a shell that cannot run a command


class User(NamedTuple):
    """A user inside the container."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...] = ()


class Order(NamedTuple):
    """What the keeper hands the child by the fork.

    init: pidfd of the container's init.  streams: stdin, stdout, stderr, or none for a terminal
    of `window` (rows, columns).  procs: see CgroupEntry.  default_env: what holds unless
    `env` says otherwise.
    """

    init: int
    namespaces: int
    procs: Sequence[str]
    capabilities: int
    program: bytes | None
    argv: Sequence[str]
    env: dict[str, str]
    default_env: dict[str, str]
    cwd: str
    user: str | None
    streams: tuple[int, int, int] | None
    window: tuple[int, int] | None
    rlimits: Sequence[Sequence[int]] = ()
    as_init: bool = False
    merge: bool = False


def order(record: Record, init: int, message: Mapping[str, Any], streams: Sequence[int]) -> Order:
    """What a request `exec` means in the container of RECORD; init: a pidfd of its init."""
    window = message["window"]
    return Order(
        init=init,
        namespaces=record.namespaces,
        procs=message["cgroup"]["procs"],
        capabilities=record.capabilities,
        program=record.seccomp or None,
        argv=message["argv"],
        env=dict(message["env"]),
        default_env=record.env,
        cwd=message["cwd"],
        user=message["user"],
        streams=(streams[0], streams[1], streams[2]) if streams else None,
        window=(window[0], window[1]) if window else None,
        rlimits=record.rlimits,
        as_init=bool(message["as_init"]),
        merge=record.merge,
    )


def pipes() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Three pipes: the node's ends (stdin's writing one, the others' reading ones), the inner."""
    pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (stdin, to_stdin), (stdout, in_out), (stderr, in_err) = pairs
    return (to_stdin, stdout, stderr), (stdin, in_out, in_err)


def run(sock: socket.socket, order: Order) -> NoReturn:
    """Become the program, or report the failure and end."""
    progress = confine.Progress(sock)
    confine.run_child(progress, lambda: _between(progress, order))


def _between(progress: confine.Progress, order: Order) -> None:
    syscall.prctl(syscall.PR_SET_DUMPABLE, 0)
    progress.step = "joining the control groups"
    procs = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in order.procs]
    confine.join_cgroups(procs)
    progress.step = "leaving the node's files"
    _close_all_but([progress.sock.fileno(), order.init, *(order.streams or ())])
    progress.step = "entering the container"
    syscall.setns(order.init, order.namespaces)
    if order.namespaces & syscall.CLONE_NEWUSER:
        confine.become_root_inside()
    os.close(order.init)
    progress.step = "forking"
    # 0: a child made with CLONE_PARENT has its maker's exit signal, SIGCHLD
    pid, pidfd = syscall.clone3(syscall.CLONE_PARENT, exit_signal=0)
    if pid == 0:
        _program(progress, order)
    protocol.send(progress.sock, {"pid": pid}, [pidfd])
    os._exit(0)


def _program(progress: confine.Progress, order: Order) -> None:
    os.setsid()
    progress.step = "making a terminal"
    if order.streams is None:
        _use_terminal(progress.sock, order.window)
    else:
        confine.set_stdio(*order.streams)
    progress.step = f"looking for the user {order.user}"
    user = find_user(order.user or "0")
    os.umask(0o022)
    confine.set_rlimits(order.rlimits)
    progress.step = "dropping capabilities"
    confine.limit(order.capabilities, order.program, merge=order.merge)
    progress.step = f"becoming the user {user.name}"
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if user.uid == 0:
        confine.keep_capabilities(order.capabilities)
    progress.step = f"changing to the directory {order.cwd}"
    os.chdir(order.cwd)
    progress.step = f"executing {order.argv[0]}"
    confine.close_at_exec()
    env = environment(order, user)
    protocol.send(progress.sock, {"ready": True})
    _execute(list(order.argv), env)


def environment(order: Order, user: User) -> dict[str, str]:
    """The program's environment: the container's own, the user's, what the caller asked for."""
    of_user = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}
    terminal = {"TERM": "linux"} if order.streams is None else {}
    if order.as_init:
        of_user = {}
    return order.default_env | of_user | terminal | order.env


def _execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Execute, looking in PATH as a shell does; failure is told on stderr, as a shell does."""
    name, failure = argv[0], OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for path in candidates(name, env.get("PATH", "")):
        try:
            os.execve(path, argv, env)  # noqa: S606  # what we are for
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                failure = error
    missing = failure.errno == errno.ENOENT
    text = "command not found" if missing and "/" not in name else os.strerror(failure.errno or 0)
    os.set_blocking(2, False)
    try:
        os.write(2, f"{name}: {text}\n".encode(errors="surrogateescape"))
    finally:
        os._exit(NOT_FOUND if missing else NOT_EXECUTABLE)


def candidates(name: str, path: str) -> list[str]:
    """The files that a command may mean."""
    if "/" in name:
        return [name]
    return [f"{directory}/{name}" for directory in path.split(":") if directory.startswith("/")]


def find_user(wanted: str) -> User:
    """A user by name or number from the /etc/passwd of the root we are in; LookupError.

    A number needs no entry there (uid 0 of an empty tree), a name does.
    """
    accounts = [line.split(":") for line in _lines("/etc/passwd")]
    for fields in accounts:
        if len(fields) >= 7 and wanted in {fields[0], fields[2]}:
            name, uid, gid = fields[0], int(fields[2]), int(fields[3])
            groups = (gid, *_groups_of(name))
            return User(name, uid, gid, fields[5] or "/", fields[6] or "/bin/sh", groups)
    if not wanted.isdigit() or int(wanted) > 0xFFFFFFFE:
        raise LookupError(f"the container has no user '{wanted}'")
    return User("root" if wanted == "0" else wanted, int(wanted), int(wanted), "/", "/bin/sh")


def _groups_of(name: str) -> Iterable[int]:
    for line in _lines("/etc/group"):
        fields = line.split(":")
        if len(fields) >= 4 and name in fields[3].split(",") and fields[2].isdigit():
            yield int(fields[2])


def _lines(path: str) -> list[str]:
    """A file's lines; none when it is missing, no regular file, or absurdly large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _PASSWD_LIMIT:
            return []
        data = os.read(fd, _PASSWD_LIMIT)
    finally:
        os.close(fd)
    return data.decode(errors="surrogateescape").splitlines()


def _use_terminal(sock: socket.socket, window: tuple[int, int] | None) -> None:
    master, slave, _ = confine.open_terminal()
    os.set_blocking(master, True)
    rows, columns = window or (24, 80)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    protocol.send(sock, {"terminal": True}, [master])
    os.close(master)
    slave = confine.above_stdio(slave)
    confine.take_terminal(slave)
    confine.set_stdio(slave, slave, slave)


def _close_all_but(kept: Iterable[int]) -> None:
    """Close everything above stderr but these."""
    first = 3
    for fd in sorted(kept):
        if fd > first:
            syscall.close_range(first, fd - 1)
        first = max(first, fd + 1)
    syscall.close_range(first)
