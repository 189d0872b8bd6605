"""A container engine of its own for kernel tests: keeper, cgroups, and tiny busybox trees."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvz.container import capability
from pyvz.container.client import KeeperClient
from pyvz.container.runtime import ExecRequest, Exit, Init, Runtime
from pyvz.container.spec import ContainerSpec, environment
from pyvz.errors import VZError
from pyvz.linux import cgroup, features
from pyvz.model.limits import IdRange, Limits
from pyvz.store.paths import Paths

BUSYBOX = Path("/bin/busybox")
DIRECTORIES = ("bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "root", "mnt")
IDS = IdRange(655360, 65536)
SLEEPER = ("/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
DEADLINE = 180.0  # seconds; a disk that others fill has stood still for a minute


class Ran:
    """What a program inside said, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Engine:
    """One node's engine below a temporary root."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.paths.run.mkdir(parents=True)
        self.keeper = KeeperClient.start_if_absent(self.paths)
        self.cgroups = cgroup.detect(self.paths.instance + ".slice")
        self.runtime = self.new_runtime(self.keeper)
        self.exits: list[Exit] = []

    def new_runtime(self, keeper: KeeperClient) -> Runtime:
        found = features.probe(self.paths.run)
        return Runtime(keeper, self.cgroups, found, self.paths)

    def tree(self, name: str = "ct") -> Path:
        """A root with busybox and nothing else."""
        root = self.paths.root / name
        for directory in DIRECTORIES:
            (root / directory).mkdir(parents=True)
        root.chmod(0o755)
        shutil.copy(BUSYBOX, root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        (root / "sbin/init").symlink_to("/bin/busybox")
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:33::/tmp:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nweb:x:33:\nextra:x:44:web,other\n")
        (root / "etc/inittab").write_text("::sysinit:/bin/echo booted\nconsole::respawn:/bin/sh\n")
        return root

    def spec(self, root: Path | None = None) -> ContainerSpec:
        """A specification with a sleeping shell as init."""
        name = str(uuid.uuid4())
        return ContainerSpec(
            uuid=name,
            hostname="tiny",
            root=root or self.tree(name[:8]),
            argv=SLEEPER,
            env=environment(name),
            ids=IDS,
            caps=capability.DEFAULT,
            nesting=False,
            limits=Limits(memory=256 << 20, pids=200),
        )

    def start(self, spec: ContainerSpec) -> Init:
        return self.runtime.start(spec)

    def watch(self) -> None:
        """Collect exits in self.exits."""
        self.runtime.on_exit(self.exits.append)

    def run(self, name: str, *argv: str, **options: object) -> Ran:
        """Run a program inside to its end."""
        request = ExecRequest(argv=argv)._replace(**options)
        session = self.runtime.exec(name, request)
        os.close(session.fds[0])
        out, err = (read_all(fd) for fd in session.fds[1:])
        return Ran(session.wait(DEADLINE), out, err)

    def shell(self, name: str, text: str) -> Ran:
        return self.run(name, "/bin/sh", "-c", text)

    def close(self) -> None:
        with contextlib.suppress(VZError):
            for name in self.runtime.running():
                self.runtime.kill(name)
        for name in self.cgroups.names():
            self.runtime.kill(name)
            self.runtime.clean(name)
        self.cgroups.remove_parent()
        self.keeper.quit(force=True)
        self.keeper.close()


APPLETS = (
    *("sh", "cat", "echo", "env", "false", "hostname", "id", "ls", "mkdir", "mknod", "mount"),
    *("ps", "pwd", "reboot", "poweroff", "sleep", "stty", "true", "tty", "umount", "yes", "dd"),
    *("kill", "ln", "chmod", "unshare", "touch", "readlink", "head", "test", "wc", "stat", "ip"),
)


def read_all(fd: int) -> str:
    """Read to the end and close."""
    data = b""
    while block := os.read(fd, 65536):
        data += block
    os.close(fd)
    return data.decode(errors="replace")


def hold(size: int) -> str:
    """A program that holds so much memory until its input ends, and then tells its sum."""
    return f"""mkfifo /root/go
head -c {size} /dev/urandom > /root/data
(cat /root/data; read x < /root/go) | tail -c {size} | md5sum > /root/sum &
echo > /root/ready
while :; do sleep 1; done
"""


def wait_for(condition: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Wait until the condition is true; fail the test otherwise."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"nothing happened for {timeout} s")
        time.sleep(0.01)


@pytest.fixture
def engine(short_root: Path) -> Iterator[Engine]:
    """An engine with its keeper; everything of it is gone afterwards."""
    if not BUSYBOX.exists():
        pytest.skip("busybox-static is not installed")
    made = Engine(short_root)
    try:
        yield made
    finally:
        made.close()
