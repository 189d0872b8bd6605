"""vzd as it really runs: started by clients, killed, doubled, flooded, activated."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from leaks import close_node
from networld import wait_for
from pyvz.cli import client
from pyvz.container.client import KeeperClient
from pyvz.errors import DaemonUnreachable, EnvironmentNotFound

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCE = Path(client.__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": os.fspath(SOURCE)}


class Node:
    """A node below a temporary root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run/pyvz"
        self.log = root / "var/log/pyvz/vzd.log"

    def connect(self, *, start: bool = True) -> client.Connection:
        return client.connect(os.fspath(self.root), start=start)

    def pid(self) -> int:
        """The pid in the lock of the vzd that serves."""
        return int((self.run / "vzd.lock").read_text())

    def keeper(self) -> int:
        """The pid of the keeper."""
        keeper = KeeperClient(self.run / "keeper.sock")
        try:
            return int(keeper.call("ping").data["pid"])
        finally:
            keeper.close()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pyvz.daemon.main", "--root", os.fspath(self.root), *words]

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Signal vzd and wait until it is gone."""
        gone(self.pid(), number)

    def begins(self) -> int:
        """How many vzds have ever begun to serve."""
        return self.log.read_text().count("vzd serves after")


def gone(pid: int, number: int) -> None:
    """Signal a process of ours and wait for its end (the last thread's: pidfd_open(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(120000), f"{pid} does not end"
    finally:
        os.close(pidfd)


@pytest.fixture
def node() -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="pv", dir="/tmp"))
    node = Node(root)
    yield node
    # vzd first: it would start the keeper again.
    if (node.run / "vzd.lock").exists():
        with suppress(ProcessLookupError):
            node.stop()
    with suppress(DaemonUnreachable, ProcessLookupError):
        gone(node.keeper(), signal.SIGKILL)  # it has no containers, and SIGTERM is not for it
    close_node(root)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def served(node: Node) -> Node:
    node.connect().close()
    return node


def test_first_command_starts_vzd_and_the_next_one_uses_it(node: Node) -> None:
    with pytest.raises(DaemonUnreachable):
        node.connect(start=False)
    with node.connect() as connection:
        assert "version" in connection.call("Node.Ping")
    pid = node.pid()
    with node.connect(start=False) as connection:
        assert connection.call("Environment.List", fields=["name"])["rows"] == []
    assert node.pid() == pid
    # It is detached: in a session of its own, without our descriptors, at home everywhere.
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert (node.root / "etc/vz/vz.conf").exists()


def test_many_first_commands_start_one_vzd(node: Node) -> None:
    code = (
        "import os; from pyvz.cli import client; c = client.connect();"
        "assert c.call('Node.Ping'); print(1)"
    )
    env = {**ENV, "PYVZ_ROOT": os.fspath(node.root)}
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(12)
    ]
    for each in clients:
        out, error = each.communicate(timeout=200)
        assert out == b"1\n", error.decode()
    assert node.begins() == 1


def test_descriptors_of_the_first_caller_are_not_held(node: Node) -> None:
    """A script's lock on fd 9 must not be held by the vzd that it happened to start."""
    lock = node.root / "script.lock"
    code = "from pyvz.cli import client; client.connect().call('Node.Ping')"
    env = {**ENV, "PYVZ_ROOT": os.fspath(node.root)}
    script = f'exec 9>{lock}; flock -n 9 || exit 1; {sys.executable} -c "{code}"'
    subprocess.run(["/bin/bash", "-c", script], env=env, check=True, timeout=200)
    subprocess.run(["flock", "-n", lock, "true"], check=True)


def test_killed_vzd_comes_back_with_the_same_keeper(served: Node) -> None:
    pid, keeper = served.pid(), served.keeper()
    served.stop(signal.SIGKILL)
    assert (served.run / "vzd.sock").exists()  # stale
    with pytest.raises(DaemonUnreachable):
        served.connect(start=False)
    with served.connect() as connection:
        assert connection.call("Node.Ping")
    assert served.pid() != pid
    assert served.keeper() == keeper


def test_client_is_told_when_vzd_dies_during_its_call(served: Node) -> None:
    with served.connect() as connection:
        replies = connection.replies("Node.Events", replay=False)
        threading.Timer(0.2, served.stop, [signal.SIGKILL]).start()
        with pytest.raises(DaemonUnreachable) as caught:
            next(replies)
        assert "vzd.log" in caught.value.hint


def test_second_vzd_says_so(served: Node) -> None:
    for words in ([], ["--foreground"]):
        second = subprocess.run(
            served.command(*words),
            env=ENV,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert second.returncode == 1
        assert f"vzd runs already for this node (pid {served.pid()})" in second.stderr


def test_shutdown_and_at_once_the_next_command(served: Node) -> None:
    for _ in range(3):
        pid, keeper = served.pid(), served.keeper()
        with served.connect(start=False) as connection:
            connection.call("Node.Shutdown")
        with served.connect() as connection:
            assert connection.call("Node.Ping")
        assert served.pid() != pid
        assert served.keeper() == keeper


def test_sigterm_ends_vzd_and_removes_the_socket(served: Node) -> None:
    keeper = served.keeper()
    served.stop()
    assert not (served.run / "vzd.sock").exists()
    assert served.keeper() == keeper
    assert served.log.read_text().rstrip().endswith("vzd has ended")


def test_start_that_fails_is_told(node: Node) -> None:
    (node.root / "etc/vz").mkdir(parents=True)
    (node.root / "etc/vz/vz.conf").write_text("VE_PARALLEL=many\n")
    with pytest.raises(DaemonUnreachable) as caught:
        node.connect()
    assert "VE_PARALLEL" in caught.value.details
    assert "VE_PARALLEL" in node.log.read_text()


def test_operations_are_logged_with_who_asked(served: Node) -> None:
    with served.connect() as connection, pytest.raises(EnvironmentNotFound):
        connection.stream("Environment.Start", ref="no such", origin="prlctl")
    assert re.search(
        rf'verb=start ve="no such" origin=prlctl uid=0 pid={os.getpid()} '
        r"result=EnvironmentNotFound seconds=\d",
        served.log.read_text(),
    )


def test_log_is_opened_anew(served: Node) -> None:
    served.log.rename(served.log.with_suffix(".1"))
    os.kill(served.pid(), signal.SIGHUP)
    wait_for(served.log.exists)


def test_a_hundred_clients_at_once(served: Node) -> None:
    failures: list[BaseException] = []

    def one() -> None:
        try:
            with served.connect(start=False) as connection:
                for _ in range(5):
                    connection.call("Environment.List", fields=["name", "status"])
        except Exception as error:  # noqa: BLE001  shown below
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive()
    assert failures == []


def test_garbage_and_half_messages(served: Node) -> None:
    pid = served.pid()
    for garbage in (os.urandom(1 << 16), b"{" * (5 << 20), b"\0" * 4096, b'{"method":"io.py'):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(120)
            sock.connect(os.fspath(served.run / "vzd.sock"))
            with suppress(OSError):
                sock.sendall(garbage)
    held = []
    for _ in range(50):  # connected, and silent or half way
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(served.run / "vzd.sock"))
        sock.sendall(b'{"method":')
        held.append(sock)
    with served.connect(start=False) as connection:
        assert connection.call("Node.Ping")
    for sock in held:
        sock.close()
    assert served.pid() == pid


def test_events_are_streamed_to_readers_that_come_and_go(served: Node) -> None:
    for _ in range(300):
        connection = served.connect(start=False)
        connection.send("Node.Events", {"replay": True}, more=True)
        connection.close()
    # vzd keeps no descriptors of clients that left
    wait_for(lambda: len(os.listdir(f"/proc/{served.pid()}/fd")) < 40)


def test_a_question_survives_the_death_of_vzd(served: Node) -> None:
    """kill -9 is not over when kill returns: the next command may still reach the dying vzd."""
    with served.connect() as connection:
        old = served.pid()
        os.kill(old, signal.SIGKILL)
        assert connection.call("Environment.List", fields=["name"])["rows"] == []
        assert served.pid() != old
        os.kill(served.pid(), signal.SIGKILL)
        with pytest.raises(DaemonUnreachable):  # what changes something is never sent twice
            connection.call("Environment.Pause", ref="nobody")


def test_idle_vzd_uses_no_cpu(served: Node) -> None:
    def switches() -> int:
        total = 0
        for status in Path(f"/proc/{served.pid()}/task").glob("*/status"):
            found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.M)
            total += int(found[1]) if found else 0
        return total

    def idle() -> bool:
        before = switches()
        time.sleep(3.0)
        return switches() - before <= 2

    wait_for(idle)  # what the start began may last on a busy machine


def _as_user(node: Node, uid: int, gid: int, code: str) -> str:
    """Run CODE with `call` as another user; what it prints."""
    program = (
        f"import os; os.setgroups([]); os.setgid({gid}); os.setuid({uid})\n"
        "from pyvz.cli import client; from pyvz import errors\n"
        "def call(method, **more):\n"
        "    try:\n"
        f"        with client.connect({os.fspath(node.root)!r}) as c:\n"
        "            c.call(method, **more); return 'ok'\n"
        "    except errors.VZError as error: return type(error).__name__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + code],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_strangers_are_refused(served: Node) -> None:
    served.root.chmod(0o755)
    assert (served.run / "vzd.sock").stat().st_mode & 0o777 in {0o600, 0o660}
    assert _as_user(served, 65534, 65534, "print(call('Node.Ping'))") == "PermissionDenied"


def test_members_of_the_group_may_look(node: Node) -> None:
    """The group is `games` here, so that the machine's groups need no change."""
    code = "from pyvz.daemon import access, main; access.GROUP = 'games'; main.main()"
    command = [sys.executable, "-c", code, "--root", os.fspath(node.root)]
    subprocess.run(command, env=ENV, check=True, timeout=200)
    node.root.chmod(0o755)
    games = 60
    look = "print(call('Environment.List', fields=['name']), call('Node.Ping'), call('Node.Tasks'))"
    assert _as_user(node, 65534, games, look) == "ok ok ok"
    act = (
        "print(call('Environment.Pause', ref='x'), call('Node.Shutdown'),"
        " call('Environment.Console', ref='x'))"
    )
    assert _as_user(node, 65534, games, act) == " ".join(["PermissionDenied"] * 3)
    assert _as_user(node, 65534, 65534, "print(call('Node.Ping'))") == "PermissionDenied"
    # The socket's mode is not the only guard: with it open to all, a stranger is refused too.
    (node.run / "vzd.sock").chmod(0o666)
    assert _as_user(node, 65534, 65534, "print(call('Node.Ping'))") == "PermissionDenied"


def test_systemd_hands_over_the_socket_and_hears_when_vzd_is_ready(node: Node) -> None:
    node.run.mkdir(parents=True)
    path = node.run / "vzd.sock"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        listener.bind(os.fspath(path))
        listener.listen(10)
        notify.bind(os.fspath(node.root / "notify"))
        notify.settimeout(120)
        with node.connect(start=False) as early:  # waits in the queue until vzd is there
            early.send("Node.Ping", {}, more=False)
            script = f"exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec " + " ".join(
                node.command("--foreground")
            )
            env = {**ENV, "NOTIFY_SOCKET": os.fspath(node.root / "notify")}
            vzd = subprocess.Popen(
                ["/bin/bash", "-c", script],
                env=env,
                pass_fds=[listener.fileno()],
                stderr=subprocess.DEVNULL,
            )
            assert notify.recv(100) == b"READY=1"
            assert "version" in early.receive().parameters
        vzd.send_signal(signal.SIGTERM)
        assert notify.recv(100) == b"STOPPING=1"
        assert vzd.wait(120) == 0
        assert path.exists()  # systemd's, not ours to remove


def test_introspection(served: Node) -> None:
    with served.connect(start=False) as connection:
        info = connection.call("org.varlink.service.GetInfo")
        assert {"io.pyvz.Environment", "io.pyvz.Node", "io.pyvz.Error"} <= set(info["interfaces"])
        text = connection.call(
            "org.varlink.service.GetInterfaceDescription", interface="io.pyvz.Error"
        )["description"]
        assert "error Locked (message: string, details: string, hint: string)" in text


def test_problem_report(served: Node) -> None:
    with served.connect(start=False) as connection:
        report = connection.call("Node.ProblemReport")["report"]
    for part in ("=== features ===", "=== vzd.log ===", "vzd serves after"):
        assert part in report
    json.dumps(report)


def test_not_root_may_not_start_it(node: Node) -> None:
    node.root.chmod(0o755)
    assert _as_user(node, 65534, 65534, "print(call('Node.Ping'))") == "DaemonUnreachable"
