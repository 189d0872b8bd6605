"""The client and the server together, over a real socket: calls, streams, errors, garbage."""
# no postponed annotations: asyncvarlink reads them

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypedDict

import pytest
from asyncvarlink import (
    FileDescriptor,
    LastResult,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    varlinkmethod,
)
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from pyvz import errors
from pyvz.cli import client
from pyvz.cli.client import Connection
from pyvz.daemon import server as server_module
from pyvz.daemon.access import Access, Caller
from pyvz.daemon.server import Server
from pyvz.errors import InternalError


class _Stream(TypedDict, total=False):
    progress: str
    result: str
    fds: list[FileDescriptor]


class _Test(VarlinkInterface, name="io.pyvz.Test"):
    """Methods of every kind."""

    gone = threading.Event()

    @varlinkmethod(return_parameter="text")
    async def Echo(self, *, text: str, number: int = 7) -> str:
        return f"{text}{number}"

    @varlinkmethod(return_parameter="text")
    def Fail(self, *, how: str) -> str:
        if how == "defect":
            raise KeyError(how)
        raise errors.Locked("ct1 is busy", details="a\nb", hint="wait")

    @varlinkmethod(delay_generator=False)
    async def Stream(self, *, count: int, fds: bool = False) -> AsyncIterator[_Stream]:
        for number in range(count):
            yield {"progress": str(number)}
        if fds:
            pipe = os.pipe()
            os.write(pipe[1], b"hello")
            yield {"fds": [FileDescriptor(fd, should_close=True) for fd in pipe]}
        raise LastResult({"result": "end"})

    @varlinkmethod(delay_generator=False)
    async def Forever(self) -> AsyncIterator[_Stream]:
        try:
            yield {"progress": "begun"}
            await asyncio.sleep(3600)
        finally:
            self.gone.set()


class _Thread:
    """A server in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.access = Access.FULL
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    async def _run(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(os.fspath(self.path))
        self.loop = asyncio.get_running_loop()
        self.end = asyncio.Event()
        server = Server(
            sock, self._interfaces, lambda what, error: InternalError(f"{what} {error}")
        )
        server.start()
        self.ready.set()
        await self.end.wait()
        server.stop()
        await server.close()

    def _interfaces(self, _: Caller) -> VarlinkInterfaceRegistry:
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(VarlinkServiceInterface("v", "p", "1", "u", registry))
        registry.register_interface(_Test())
        return registry

    def stop(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Thread]:
    with tempfile.TemporaryDirectory(prefix="pv", dir="/tmp") as root:
        run = Path(root) / "run/pyvz"
        run.mkdir(parents=True)
        thread = _Thread.__new__(_Thread)
        monkeypatch.setattr(server_module, "access_of", lambda *_: thread.access)
        monkeypatch.setenv("PYVZ_ROOT", root)
        thread.__init__(run / "vzd.sock")  # type: ignore[misc]
        yield thread
        thread.stop()


@pytest.fixture
def connection(served: _Thread) -> Iterator[Connection]:
    with client.connect() as connection:
        yield connection


def test_call(connection: Connection) -> None:
    assert connection.call("Test.Echo", text="a", number=None) == {"text": "a7"}
    assert connection.call("io.pyvz.Test.Echo", text="ä\udc80", number=1) == {"text": "ä\udc801"}


def test_errors_have_their_class_and_fields(connection: Connection) -> None:
    with pytest.raises(errors.Locked) as caught:
        connection.call("Test.Fail", how="locked")
    assert (caught.value.message, caught.value.details, caught.value.hint) == (
        "ct1 is busy",
        "a\nb",
        "wait",
    )
    with pytest.raises(errors.InternalError):
        connection.call("Test.Fail", how="defect")
    with pytest.raises(errors.UsageError, match="text"):
        connection.call("Test.Echo", text=5)
    with pytest.raises(errors.VZError, match="MethodNotFound"):
        connection.call("Test.Nothing")
    with pytest.raises(errors.VZError, match="InterfaceNotFound"):
        connection.call("Nothing.Echo")
    with pytest.raises(errors.VZError, match="ExpectedMore"):
        connection.call("Test.Forever")
    assert connection.call("Test.Echo", text="still") == {"text": "still7"}


def test_unknown_error_class_becomes_vzerror() -> None:
    error = client.error_from("io.pyvz.Error.FromTheFuture", {"message": "m"})
    assert type(error) is errors.VZError
    assert error.message == "m"
    assert type(client.error_from("io.pyvz.Error.TYPE_CHECKING", {})) is errors.VZError


def test_stream_and_progress(connection: Connection) -> None:
    seen: list[object] = []
    result = connection.stream("Test.Stream", count=100, on_progress=seen.append)
    assert result == "end"
    assert seen == [str(number) for number in range(100)]


def test_descriptors_belong_to_the_reply_that_names_them(connection: Connection) -> None:
    connection.send("Test.Stream", {"count": 50, "fds": True}, more=True)
    time.sleep(0.1)  # so that several replies come in one read
    for _ in range(50):
        assert connection.receive().fds == []
    reply = connection.receive()
    assert len(reply.fds) == 2
    assert os.read(reply.fds[0], 10) == b"hello"
    for fd in reply.fds:
        os.close(fd)
    last = connection.receive()
    assert not last.continues
    assert last.fds == []


def test_server_notices_that_the_client_went_away(served: _Thread) -> None:
    _Test.gone.clear()
    connection = client.connect()
    connection.send("Test.Forever", {}, more=True)
    assert connection.receive().parameters == {"progress": "begun"}
    assert not _Test.gone.wait(0.1)
    connection.close()
    assert _Test.gone.wait(60)


def test_half_closed_client_gets_its_answer(served: _Thread) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(os.fspath(served.path))
        call = {"method": "io.pyvz.Test.Stream", "parameters": {"count": 3}, "more": True}
        sock.sendall(json.dumps(call).encode() + b"\0")
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
    assert answer.count(b"\0") == 4
    assert b'"result":"end"' in answer


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"[" * 100000 + b"\0",
        b'{"method": 1}\0',
        b'{"method":"x"}\0',
        b'{"method":"io.pyvz.Test.Echo","parameters":[1]}\0',
        b'"text"\0',
        b"\xff\xfe\0",
        b'{"a":' + b"9" * 10000 + b"}\0",
        b'{"method":"io.pyvz.Test.__init__"}\0',
        b'{"method":"io.pyvz.Test.gone"}\0',
        os.urandom(100000),
    ],
)
def test_garbage_harms_nobody_else(served: _Thread, garbage: bytes) -> None:
    with client.connect() as good, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(os.fspath(served.path))
        try:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert good.call("Test.Echo", text="x") == {"text": "x7"}


def test_message_without_end_is_cut_off_at_4_mib(served: _Thread) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(os.fspath(served.path))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"x" * (8 << 20))


def test_large_message_within_the_cap(connection: Connection) -> None:
    text = "y" * (3 << 20)
    begun = time.monotonic()
    assert len(str(connection.call("Test.Echo", text=text)["text"])) == (3 << 20) + 1
    assert time.monotonic() - begun < 30


def test_slow_reader_does_not_hold_up_others(served: _Thread) -> None:
    with client.connect() as slow, client.connect() as quick:
        slow.send("Test.Stream", {"count": 200000}, more=True)
        for _ in range(20):
            assert quick.call("Test.Echo", text="x") == {"text": "x7"}


def test_two_hundred_connections(served: _Thread) -> None:
    connections = [client.connect() for _ in range(200)]
    for number, each in enumerate(connections):
        assert each.call("Test.Echo", text="n", number=number) == {"text": f"n{number}"}
    for each in connections:
        each.close()


def test_pipelined_calls_are_answered_in_order(connection: Connection) -> None:
    for number in range(100):
        connection.send("Test.Echo", {"text": "n", "number": number}, more=False)
    answers = [connection.receive().parameters["text"] for _ in range(100)]
    assert answers == [f"n{number}" for number in range(100)]


def test_readers_and_strangers_are_refused(served: _Thread) -> None:
    for served.access in (Access.READ, Access.NONE):
        with client.connect() as connection, pytest.raises(errors.PermissionDenied):
            connection.call("Test.Echo", text="x")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(errors.DaemonUnreachable):
        client.connect(os.fspath(tmp_path), start=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(errors.DaemonUnreachable, match="root"):
        client.connect(os.fspath(tmp_path))


def test_end_of_the_server_is_told(served: _Thread) -> None:
    connection = client.connect()
    connection.send("Test.Forever", {}, more=True)
    connection.receive()
    served.loop.call_soon_threadsafe(served.end.set)
    with pytest.raises(errors.DaemonUnreachable):
        connection.receive()
    connection.close()


def test_client_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import pyvz.cli.client;"
        "print(*sorted(set(sys.modules) - before))"
    )
    source = Path(client.__file__).resolve().parents[2]
    found = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {os.fspath(source)!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"typing", "socket", "selectors", "dataclasses", "subprocess", "logging", "pathlib"}
    assert not heavy & set(found)
