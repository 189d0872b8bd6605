"""Where the serial ports of a virtual machine lead; QEMU gets descriptors, never paths."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import AlreadyExists, BadValue, StorageError, Unsupported
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import SerialPort
from pyvz.vm.spec import SerialSpec

CONSOLE = "serial0"


class Ports(NamedTuple):
    """Ports for QEMU, and the descriptors behind them: files, and sockets that listen."""

    ports: tuple[SerialSpec, ...]
    files: tuple[int, ...] = ()
    sockets: tuple[int, ...] = ()


def open_all(env: Environment, config: Config, opened: ExitStack) -> Ports:
    """Open what the ports lead to; every machine has serial0, which is its console by default."""
    ports: list[SerialSpec] = []
    files: list[int] = []
    sockets: list[int] = []
    for port in config.machine.serials:
        if not port.enabled:
            continue
        words = ""
        if port.kind == "file":
            files.append(_file(env.home / port.target, opened))
            words = f"file,path=/dev/fdset/{files[-1]},append=on"
        elif port.kind == "socket" and port.mode == "server":
            sockets.append(_listening(env.home / port.target, opened))
            words = f"socket,fd={sockets[-1]},server=on,wait=off"
        elif port.kind:
            words = _network(port)
        ports.append(SerialSpec(port.name, words))
    if not any(port.name == CONSOLE for port in ports):
        ports.insert(0, SerialSpec(CONSOLE, ""))
    return Ports(tuple(ports), tuple(files), tuple(sockets))


def _file(path: Path, opened: ExitStack) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    opened.callback(os.close, descriptor)
    return descriptor


def _listening(path: Path, opened: ExitStack) -> int:
    if path.is_socket():
        path.unlink()  # of an earlier start
    sock = opened.enter_context(socket.socket(socket.AF_UNIX))
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        raise AlreadyExists(f"{path} cannot be made a socket: {error.strerror}") from error
    path.chmod(0o600)
    sock.listen(1)
    return sock.fileno()


def _network(port: SerialPort) -> str:
    """Return QEMU's words for a port that leads to a host and port."""
    host, colon, number = port.target.rpartition(":")
    if not colon or not number.isdigit() or "," in host:
        raise BadValue(f"{port.name}: '{port.target}' is not of the form HOST:PORT")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104  as the user wrote it
    if port.kind == "tcp":
        way = "server=on,wait=off" if port.mode == "server" else "reconnect=5"
        return f"socket,host={host},port={number},{way}"
    if port.kind == "udp":
        return f"udp,host={host},port={number}"
    raise Unsupported(f"{port.name}: '{port.kind}' cannot be a serial port in this version")
