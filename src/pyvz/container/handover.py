"""An upgrade of the keeper: the same process executes the new program and goes on.

The pid stays, so every init and session stays its child.  Descriptors (lock, listener, clients,
consoles and their viewers, pidfds) are inherited; what they are is in a memfd, as JSON:

    {"listener", "lock", "counter", "clients": [...], "containers": [...], "sessions": [...],
     "exits": [...], "ended_sessions": {...}, "answer": [client, id]}

A child that ends between the two images is a zombie until the new one looks.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from pyvz.container.console import Console
from pyvz.container.ledger import Exit, Record

if TYPE_CHECKING:
    from pyvz.container.custody import Container, Keeper

OPTION = "--handover"


def leave(keeper: Keeper, client: int, identity: object) -> None:
    """Execute the new image; returns only by OSError, and then all is as before."""
    data = _describe(keeper) | {"answer": [client, identity]}
    fds = _descriptors(data)
    memfd = os.memfd_create("pyvz-handover", os.MFD_CLOEXEC)
    try:
        with open(memfd, "w", encoding="utf-8", closefd=False) as file:
            json.dump(data, file)
        for fd in (memfd, *fds):
            os.set_inheritable(fd, True)  # noqa: FBT003  # the name of the function
        os.execv(sys.executable, command(memfd))  # noqa: S606  # the keeper itself
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003
        os.close(memfd)


def command(memfd: int) -> list[str]:
    """The command line of the new image: ours, with the memfd."""
    words = sys.orig_argv[1:]
    if OPTION in words:
        del words[words.index(OPTION) :]
    if "--detach" in words:
        words.remove("--detach")
    return [sys.executable, *words, OPTION, str(memfd)]


def load(memfd: int) -> dict[str, Any]:
    """What our former self has left; closes the memfd."""
    with open(memfd, encoding="utf-8") as file:
        file.seek(0)
        data: dict[str, Any] = json.load(file)
    for fd in _descriptors(data):
        os.set_inheritable(fd, False)  # noqa: FBT003
    return data


def restore(keeper: Keeper, data: dict[str, Any]) -> None:
    """Put a fresh keeper into the state described."""
    from pyvz.container.custody import Session  # noqa: PLC0415  # it imports us

    keeper.counter = data["counter"]
    for each in data["clients"]:
        connection = keeper.add_connection(socket.socket(fileno=each["fd"]), each["number"])
        connection.subscribed = each["subscribed"]
    for each in data["containers"]:
        record = Record.from_json(each["record"])
        container = keeper.add_container(record, each["pidfd"], ours=each["ours"])
        if each["console"] is not None:
            container.console = _restore_console(keeper, each["console"])
    keeper.sessions = {each[0]: Session(*each) for each in data["sessions"]}
    keeper.exits = {each[0]: Exit(*each) for each in data["exits"]}
    keeper.ended_sessions = data["ended_sessions"]
    number, identity = data["answer"]
    if number in keeper.connections:
        keeper.connections[number].send({"id": identity, "ok": {"pid": os.getpid()}})


def _describe(keeper: Keeper) -> dict[str, Any]:
    return {
        "listener": keeper.listener.fileno(),
        "lock": keeper.lock,
        "counter": keeper.counter,
        "clients": [
            {"fd": each.sock.fileno(), "number": each.number, "subscribed": each.subscribed}
            for each in keeper.connections.values()
            if not each.lagging
        ],
        "containers": [_describe_container(each) for each in keeper.containers.values()],
        "sessions": [list(each) for each in keeper.sessions.values()],
        "exits": [list(each) for each in keeper.exits.values()],
        "ended_sessions": keeper.ended_sessions,
    }


def _describe_container(container: Container) -> dict[str, Any]:
    console = container.console
    return {
        "record": container.record.to_json(),
        "pidfd": container.pidfd,
        "ours": container.ours,
        "console": None
        if console is None
        else {
            "master": console.master,
            "ring": base64.b64encode(console.ring.content()).decode(),
            "viewers": console.viewers(),
            "log": console.log,
        },
    }


def _restore_console(keeper: Keeper, data: dict[str, Any]) -> Console:
    console = Console(keeper.loop, data["master"], data["log"])
    console.ring.append(base64.b64decode(data["ring"]))
    for fd in data["viewers"]:
        with contextlib.suppress(OSError):
            console.adopt_viewer(socket.socket(fileno=fd))
    return console


def _descriptors(data: dict[str, Any]) -> list[int]:
    fds = [data["listener"], data["lock"], *(each["fd"] for each in data["clients"])]
    for each in data["containers"]:
        fds.append(each["pidfd"])
        if each["console"] is not None:
            fds += [each["console"]["master"], *each["console"]["viewers"]]
    fds += [each[3] for each in data["sessions"]]
    return fds
