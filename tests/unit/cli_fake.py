"""A vzd for the tests of the command lines: a thread that speaks Varlink and answers as told."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Parameters = dict[str, Any]


class Refusal(Exception):
    """Answered as the error `io.pyvz.Error.<name>`."""

    def __init__(self, name: str, message: str, details: str = "", hint: str = "") -> None:
        super().__init__(name)
        self.name = name
        self.parameters = {"message": message, "details": details, "hint": hint}


class Answer:
    """A reply with descriptors; they are closed when they have been sent."""

    def __init__(self, parameters: Parameters, fds: tuple[int, ...] = ()) -> None:
        self.parameters = parameters
        self.fds = fds


Handler = Callable[[Parameters], "Parameters | Answer | Iterator[Parameters | Answer]"]


class FakeServer:
    """Answers `io.pyvz.<method>` by the handlers; remembers the calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.handlers: dict[str, Handler] = {}
        self.calls: list[tuple[str, Parameters]] = []
        (root / "run/pyvz").mkdir(parents=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(os.fspath(root / "run/pyvz/vzd.sock"))
        self._socket.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def named(self, method: str) -> list[Parameters]:
        """Return the parameters of every call of METHOD."""
        return [parameters for name, parameters in self.calls if name == method]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        with connection:
            while True:
                while b"\0" not in buffer:
                    try:
                        data = connection.recv(65536)
                    except OSError:
                        return
                    if not data:
                        return
                    buffer += data
                message, _, buffer = buffer.partition(b"\0")
                try:
                    self._answer(connection, json.loads(message))
                except (BrokenPipeError, ConnectionResetError):
                    return

    def _answer(self, connection: socket.socket, call: Parameters) -> None:
        method = call["method"].removeprefix("io.pyvz.")
        parameters = call.get("parameters", {})
        self.calls.append((method, parameters))
        try:
            replies = self.handlers[method](parameters)
            if isinstance(replies, (dict, Answer)):
                _send(connection, replies, continues=False)
                return
            for reply in replies:
                if isinstance(reply, dict) and "result" in reply:
                    _send(connection, reply, continues=False)
                    return
                _send(connection, reply, continues=True)
        except Refusal as refusal:
            error = {"error": f"io.pyvz.Error.{refusal.name}", "parameters": refusal.parameters}
            connection.sendall(json.dumps(error).encode() + b"\0")
        except KeyError:
            error = {"error": "org.varlink.service.MethodNotFound", "parameters": {}}
            connection.sendall(json.dumps(error).encode() + b"\0")


def _send(connection: socket.socket, reply: Parameters | Answer, *, continues: bool) -> None:
    answer = reply if isinstance(reply, Answer) else Answer(reply)
    message: Parameters = {"parameters": answer.parameters}
    if continues:
        message["continues"] = True
    data = json.dumps(message).encode() + b"\0"
    if answer.fds:
        socket.send_fds(connection, [data], list(answer.fds))
        for fd in answer.fds:
            os.close(fd)
    else:
        connection.sendall(data)
