"""virt-manager, unmodified, under a virtual screen: both kinds are shown, their consoles open."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from images import INITTAB, busybox_root, busybox_tar
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "world"]
pytestmark = [
    pytest.mark.requires(
        "root", "program:virt-manager", "program:Xvfb", "program:xdotool", "program:dbus-daemon",
        "program:qemu-system-x86_64",
    ),
    pytest.mark.long,
]  # fmt: skip

URI = "vz:///system"
# In a mount namespace of its own, in which the node's sockets are where clients look for them.
AT_HOME = (
    "mount -t tmpfs tmpfs /run && mkdir /run/libvirt && mount --bind {} /run/libvirt && "
    'exec virt-manager -c vz:///system "$@"'
)
PATIENCE = 120.0


class Desktop:
    """A screen, a session bus, and one virt-manager, which further calls are handed to."""

    def __init__(self, world: World, work: Path, undo: ExitStack) -> None:
        self.log = work / "log"
        self._sockets = world.root / "run/libvirt"
        self._undo = undo
        self.env = {
            **os.environ, "HOME": os.fspath(work), "XDG_RUNTIME_DIR": os.fspath(work),
            "NO_AT_BRIDGE": "1", "GSETTINGS_BACKEND": "memory", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        screen = self._first_line(["Xvfb", "-displayfd", "1", "-screen", "0", "1024x700x24"])
        self.env["DISPLAY"] = f":{screen}"
        bus = ["dbus-daemon", "--session", "--nofork", "--print-address=1"]
        self.env["DBUS_SESSION_BUS_ADDRESS"] = self._first_line(bus)
        with self.log.open("wb") as log:
            self._start(self._argv("--no-fork", "--debug"), stdout=log, stderr=log)

    def show(self, *words: str) -> None:
        """Have a window opened, as a second call does."""
        subprocess.run(self._argv(*words), env=self.env, check=True, timeout=PATIENCE)

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def xdotool(self, *words: str) -> str:
        done = subprocess.run(
            ["xdotool", *words], env=self.env, check=False, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
        return done.stdout

    def _argv(self, *words: str) -> list[str]:
        script = AT_HOME.format(self._sockets)
        return ["unshare", "-m", "--propagation", "slave", "sh", "-ec", script, "sh", *words]

    def _start(self, argv: list[str], **more: object) -> subprocess.Popen[bytes]:
        made: subprocess.Popen[bytes] = subprocess.Popen(argv, env=self.env, **more)  # type: ignore[call-overload]
        self._undo.callback(made.wait, 30)
        self._undo.callback(made.terminate)
        return made

    def _first_line(self, argv: list[str]) -> str:
        made = self._start(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert made.stdout is not None
        self._undo.callback(made.stdout.close)
        return made.stdout.readline().decode().strip()


@pytest.fixture
def desktop(world: World, tiny_iso: Path, busybox_tar: Path) -> Iterator[Desktop]:
    _with_a_shell_on_the_console(world)
    world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "192", "--cpus", "1")
    world.run("prlctl", "set", "vm1", "--device-set", "cdrom0", "--image", os.fspath(tiny_iso))
    world.run("prlctl", "set", "vm1", "--vnc-mode", "auto", "--vnc-nopasswd")
    world.run("prlctl", "start", "web")
    work = world.root / "desktop"
    work.mkdir(mode=0o700)
    with ExitStack() as undo:
        yield Desktop(world, work, undo)


def _with_a_shell_on_the_console(world: World) -> None:
    cache = next((world.root / "vz/template/cache").iterdir())
    tree = world.root / "tree"
    tree.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", cache, "-C", tree], check=True)
    (tree / "etc/inittab").write_text(f"{INITTAB}console::respawn:-/bin/sh\n")
    subprocess.run(["tar", "--zstd", "-cf", cache, "-C", tree, "."], check=True)
    shutil.rmtree(tree)


def await_that(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_windows_and_consoles(world: World, desktop: Desktop) -> None:
    await_that(lambda: desktop.says("changed to state=Active"), "no connection")
    await_that(lambda: desktop.says("domain=web status=Running"), "no container")
    await_that(lambda: desktop.says("domain=vm1 status=Shutoff"), "no machine")
    world.run("prlctl", "start", "vm1")
    desktop.show("--show-domain-console", "vm1")
    await_that(lambda: desktop.says("Viewer connected"), "the remote display is not shown")
    desktop.show("--show-domain-console", "web")
    await_that(lambda: desktop.says("Opening console stream"), "no console")
    await_that(lambda: desktop.xdotool("search", "--name", "^web on"), "no window")
    await_that(lambda: _typed(world, desktop), "nothing reaches the console")
    for window in ("--show-domain-editor", "--show-domain-performance", "--show-domain-delete"):
        desktop.show(window, "web")
        desktop.show(window, "vm1")
    desktop.show("--show-host-summary")
    desktop.show("--show-domain-creator")
    await_that(lambda: desktop.says("Showing new vm wizard"), "no wizard")
    log = desktop.log.read_text()
    for wrong in ("Traceback", "error dialog", " ERROR ", "not supported"):
        assert wrong not in log, log[log.index(wrong) - 300 :][:1500]


def _typed(world: World, desktop: Desktop) -> bool:
    """Type into the container's console; whether a program inside has seen it."""
    window = desktop.xdotool("search", "--name", "^web on").split()[-1]
    desktop.xdotool("windowraise", window, "windowfocus", "--sync", window)
    desktop.xdotool("mousemove", "500", "400", "click", "1")
    desktop.xdotool("type", "--delay", "30", "echo typed >/tmp/seen")
    desktop.xdotool("key", "Return")
    time.sleep(0.5)
    return world.run("prlctl", "exec", "web", "cat /tmp/seen || :") == "typed\n"
