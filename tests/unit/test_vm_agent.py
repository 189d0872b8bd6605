"""The guest agent is the guest's: whatever it says, we end in time, with an error of ours."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable

import pytest

from pyvz.errors import AgentError, ExecError, NoAgent, Timeout
from pyvz.vm import agent
from pyvz.vm.agent import Agent

Reply = Callable[[dict[str, object]], bytes]


def talk(reply: Reply, *, patience: float = 60.0) -> Agent:
    """A conversation with a guest that answers as REPLY says; it synchronises as it must."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, theirs.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line.lstrip(b"\xff"))
                if message["execute"] == "guest-sync-delimited":
                    number = message["arguments"]["id"]
                    theirs.sendall(b'{"return": 1}\n\xff' + json.dumps({"return": number}).encode())
                    theirs.sendall(b"\n")
                else:
                    theirs.sendall(reply(message))

    threading.Thread(target=serve, daemon=True).start()
    return Agent(lambda: ours, patience=patience)


def test_answers_and_refusals() -> None:
    with talk(lambda _: b'{"return": {"a": 1}}\n') as guest:
        assert guest.call("guest-info") == {"a": 1}
    error = b'{"error": {"class": "GenericError", "desc": "no\\u001b[31m such"}}\n'
    with talk(lambda _: error) as guest, pytest.raises(AgentError) as raised:
        guest.call("guest-info")
    assert "\x1b" not in raised.value.message


def test_silence_has_an_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(NoAgent):
        Agent(lambda: ours, patience=0.1)
    with talk(lambda _: b"") as guest, pytest.raises(Timeout):
        guest.call("guest-info", timeout=0.1)


def test_a_guest_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(NoAgent):
        Agent(lambda: ours, patience=60.0)


def test_an_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MAX_ANSWER", 1000)
    with talk(lambda _: b"x" * 5000) as guest, pytest.raises(AgentError):
        guest.call("guest-info")


@pytest.mark.parametrize("garbage", [b"[]", b"null", b'{"return": []}', b"\xfe\xff", b'{"return"'])
def test_garbage(garbage: bytes) -> None:
    with talk(lambda _: garbage + b"\n") as guest, pytest.raises(ExecError):
        guest.start(["true"])


def test_programs() -> None:
    def reply(message: dict[str, object]) -> bytes:
        if message["execute"] == "guest-exec":
            return b'{"return": {"pid": 5}}\n'
        return b'{"return": {"exited": true, "signal": 9, "out-data": "aGk="}}\n'

    with talk(reply) as guest:
        ended = guest.run(["true"], timeout=60)
    assert (ended.status, ended.stdout) == (137, b"hi")
