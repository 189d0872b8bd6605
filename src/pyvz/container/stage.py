"""The child side of a start: executes a StartPlan in fresh namespaces, then becomes init.

Runs between clone3 and execve, as pid 1 of the new pid namespace.  The ladder of messages with
the keeper is drawn in protocol.py.

A hostile tree may hold links anywhere, so no path of it is looked up while the node's tree is in
reach: first everything that comes from there is taken as detached mounts (device nodes; /proc and
/sys, which the kernel lets a user namespace mount only where visible ones exist,
fs/namespace.c: mount_too_revealing), then pivot_root, then the node's tree is unmounted, and only
then the operations run.  In between not even ".." is safe: at "/" it climbs onto what is stacked
there, which after pivot_root(".", ".") is the old root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from pyvz.container import confine, netns, operation, protocol
from pyvz.linux import syscall

_MOVE_MOUNT_T_SYMLINKS = 0x10
_QUIET = syscall.MOUNT_ATTR_NOSUID | syscall.MOUNT_ATTR_NODEV | syscall.MOUNT_ATTR_NOEXEC

# Mounted with _QUIET; the kernel wants a visible one in the mount namespace at that moment.
_FROM_VISIBLE = ("proc", "sysfs")


class Order(NamedTuple):
    """What the keeper hands the child by the fork: the plan, and how to get into place."""

    plan: operation.StartPlan
    cgroups: Sequence[int]  # open files of CgroupEntry
    user_namespace: bool
    program: bytes | None  # seccomp


def run(sock: socket.socket, order: Order) -> NoReturn:
    """Become the container's init, or report the failure and end."""
    progress = confine.Progress(sock)
    confine.run_child(progress, lambda: _Stage(progress, order).run())


class _Stage:
    def __init__(self, progress: confine.Progress, order: Order) -> None:
        self.progress = progress
        self.order = order
        self.taken: dict[operation.Operation, int] = {}
        self.binds: list[int] = []
        self.slave = -1

    def run(self) -> None:
        plan = self.order.plan
        os.umask(0)
        root = self._wait_for_go()
        self._enter(root)
        for step in plan.operations:
            self.progress.step = step.describe()
            _DOERS[type(step)](self, step)
        self._become_init(plan)

    def _wait_for_go(self) -> int:
        """The keeper has written the id maps and prepared the trees: their descriptors."""
        self.progress.step = "waiting for the keeper"
        self.progress.sock.settimeout(protocol.SETUP_TIMEOUT)
        answer = protocol.receive(self.progress.sock)
        if answer is None:  # the keeper is gone, or gave up
            os._exit(127)
        _, (root, *self.binds) = answer
        return root

    def _enter(self, root: int) -> None:
        self.progress.step = "joining the control groups"
        confine.join_cgroups(self.order.cgroups)
        self.progress.step = "becoming root of the container"
        if self.order.user_namespace:
            confine.become_root_inside()
        self.progress.step = "entering the root directory"
        syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
        self._take_from_node()
        self.progress.step = "entering the root directory"
        old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # On top of "/", because the way to /vz/root/<id> may be closed to our ids.
        syscall.move_mount(root, "", old_root, ".")
        os.fchdir(root)
        # The mount lives by its place in the tree from here on: an open descriptor would keep
        # its super block busy after the container's end.
        os.close(root)
        syscall.pivot_root(".", ".")
        self.progress.step = "leaving the node's tree"
        os.fchdir(old_root)
        syscall.umount2(".", syscall.MNT_DETACH)
        os.close(old_root)
        os.chdir("/")

    def _take_from_node(self) -> None:
        """Have what the operations need of the node as detached mounts."""
        for step in self.order.plan.operations:
            self.progress.step = step.describe()
            if isinstance(step, operation.NodeBind):
                self.taken[step] = _clone_tree(step.source)
            elif isinstance(step, operation.Mount) and step.fstype in _FROM_VISIBLE:
                self.taken[step] = syscall.detached_mount(step.fstype, _QUIET)

    def _become_init(self, plan: operation.StartPlan) -> None:
        self.progress.step = "preparing init"
        os.setsid()
        slave = confine.above_stdio(self.slave)
        confine.take_terminal(slave)
        sock = self.progress.sock
        confine.set_stdio(slave, slave, slave)
        confine.set_rlimits(plan.rlimits)
        os.umask(0o022)
        confine.close_at_exec()
        protocol.send(sock, {"ready": True})
        self.progress.step = "dropping capabilities"
        confine.limit(plan.capabilities, self.order.program, merge=plan.merge)
        confine.keep_capabilities(plan.capabilities)
        self.progress.step = f"executing {plan.argv[0]}"
        os.execve(plan.argv[0], plan.argv, dict(plan.env))  # noqa: S606  # what we are for

    # -- one method per operation ---------------------------------------------------------------

    def mount(self, step: operation.Mount) -> None:
        if step.optional and not os.path.isdir(step.target):
            return
        if step in self.taken:
            self._attach(self.taken[step], step.target)
            return
        syscall.mount(step.fstype, step.target, step.fstype, step.flags, step.data or None)

    def directory(self, step: operation.Directory) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(step.path, step.mode)

    def empty_file(self, step: operation.EmptyFile) -> None:
        _make_file(step.path, step.mode)

    def symlink(self, step: operation.Symlink) -> None:
        with contextlib.suppress(FileExistsError):
            os.symlink(step.to, step.path)

    def node(self, step: operation.Node) -> None:
        kind = stat.S_IFBLK if step.kind == "b" else stat.S_IFCHR
        os.mknod(step.path, kind | step.mode, os.makedev(step.major, step.minor))

    def node_bind(self, step: operation.NodeBind) -> None:
        self._attach(self.taken[step], step.path)

    def attach(self, step: operation.Attach) -> None:
        self._attach(self.binds[step.number], step.target)

    def figure(self, step: operation.Figure) -> None:
        if os.path.lexists(step.target):
            self._attach(self.binds[step.number], step.target)

    def read_only(self, step: operation.ReadOnly) -> None:
        if not os.path.lexists(step.path):
            return
        kept = [(path, _clone_tree(path)) for path in step.keep if os.path.lexists(path)]
        tree = _clone_tree(step.path)
        attr = syscall.MountAttr(set=syscall.MOUNT_ATTR_RDONLY | _QUIET)
        syscall.mount_setattr(tree, "", attr, syscall.AT_EMPTY_PATH)
        self._attach(tree, step.path)
        for path, clone in kept:
            self._attach(clone, path)

    def seal(self, step: operation.Seal) -> None:
        attr = syscall.MountAttr(set=syscall.MOUNT_ATTR_RDONLY)
        syscall.mount_setattr(syscall.AT_FDCWD, step.path, attr)

    def mask(self, step: operation.Mask) -> None:
        try:
            found = os.lstat(step.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        tree = _clone_tree(step.directory if stat.S_ISDIR(found.st_mode) else step.file)
        attr = syscall.MountAttr(set=syscall.MOUNT_ATTR_RDONLY | _QUIET)
        syscall.mount_setattr(tree, "", attr, syscall.AT_EMPTY_PATH)
        self._attach(tree, step.path)

    def cgroup_namespace(self, _step: operation.CgroupNamespace) -> None:
        syscall.unshare(syscall.CLONE_NEWCGROUP)

    def console(self, step: operation.Console) -> None:
        master, self.slave, number = confine.open_terminal()
        _make_file(step.path, 0o600)
        self._attach(_clone_tree(f"/dev/pts/{number}"), step.path)
        protocol.send(self.progress.sock, {"console": True}, [master])
        os.close(master)

    def loopback(self, _step: operation.Loopback) -> None:
        netns.loopback_up()

    def hostname(self, step: operation.Hostname) -> None:
        syscall.sethostname(step.name)

    def _attach(self, tree: int, target: str) -> None:
        """Attach a detached mount, whose descriptor is closed, making the mount point."""
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(target, 0o755, exist_ok=True)
        elif not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            _make_file(target, 0o644)
        flags = syscall.MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
        syscall.move_mount(tree, "", syscall.AT_FDCWD, target, flags)
        os.close(tree)


def _clone_tree(path: str) -> int:
    # Recursively, because in a user namespace a part of a tree with locked mounts may not be had.
    flags = syscall.OPEN_TREE_CLONE | syscall.AT_RECURSIVE
    return syscall.open_tree(syscall.AT_FDCWD, path, flags)


def _make_file(path: str, mode: int) -> None:
    """Make an empty file without opening what may be there (a FIFO would block us)."""
    try:
        os.mknod(path, stat.S_IFREG | mode)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


_DOERS: dict[type, Callable[[_Stage, Any], None]] = {
    operation.Mount: _Stage.mount,
    operation.Directory: _Stage.directory,
    operation.EmptyFile: _Stage.empty_file,
    operation.Symlink: _Stage.symlink,
    operation.Node: _Stage.node,
    operation.NodeBind: _Stage.node_bind,
    operation.Attach: _Stage.attach,
    operation.Figure: _Stage.figure,
    operation.ReadOnly: _Stage.read_only,
    operation.Seal: _Stage.seal,
    operation.Mask: _Stage.mask,
    operation.CgroupNamespace: _Stage.cgroup_namespace,
    operation.Console: _Stage.console,
    operation.Loopback: _Stage.loopback,
    operation.Hostname: _Stage.hostname,
}
