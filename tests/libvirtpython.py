"""python-libvirt in a program of its own (the distribution's), that evaluates what a test asks."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from realnode import World

PYTHON = "/usr/bin/python3"  # which has the distribution's package python3-libvirt
PROGRAM = """
import json, sys, threading, libvirt
libvirt.registerErrorHandler(lambda *_: None, None)
libvirt.virEventRegisterDefaultImpl()
def loop():
    while True:
        libvirt.virEventRunDefaultImpl()
threading.Thread(target=loop, daemon=True).start()
heard = []
space = {"libvirt": libvirt, "heard": heard, "tell": lambda *event: heard.append(list(event))}
print("ready", flush=True)
for line in sys.stdin:
    code = json.loads(line)
    try:
        try:
            answer = eval(code, space)
        except SyntaxError:
            answer = exec(code, space)
        reply = {"value": answer}
    except libvirt.libvirtError as error:
        reply = {"code": error.get_error_code(), "text": str(error)}
    print(json.dumps(reply, default=repr), flush=True)
"""


class LibvirtPython:
    """A client with its event loop; `connection` is what it asks by, `dom(name)` finds a domain.

    `tell` is a callback that keeps its arguments in `heard`.
    """

    def __init__(self, uri: str) -> None:
        self._process = subprocess.Popen(
            [PYTHON, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self(f"connection = libvirt.open({uri!r})")
        self("dom = connection.lookupByName")

    def __call__(self, code: str) -> Any:
        """Run a piece of Python, and return its value as JSON has it."""
        reply = self.reply(code)
        assert "code" not in reply, (code, reply)
        return reply["value"]

    def fails(self, code: str) -> tuple[int, str]:
        """Run what must fail; return the number and the text of libvirt's error."""
        reply = self.reply(code)
        assert "code" in reply, (code, reply)
        return reply["code"], reply["text"]

    def until(self, code: str, *, seconds: float = 120.0) -> None:
        """Wait until an expression is true; that it fails is not that."""
        deadline = time.monotonic() + seconds
        while not (reply := self.reply(code)).get("value"):
            assert time.monotonic() < deadline, (code, reply, self("heard"))
            time.sleep(0.05)

    def hears(self, *event: object) -> None:
        """Wait for an event with these arguments, in their order, after the connection's."""
        self.until(f"any(each[-{len(event)}:] == {list(event)!r} for each in heard)")

    def reply(self, code: str) -> dict[str, Any]:
        """Run a piece of Python; return {"value": ...} or {"code": ..., "text": ...}."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._read())
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(120)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "python-libvirt ended"
        return line


def socket_uri(world: World) -> str:
    """The URI of a node's own socket."""
    return f"vz+unix:///system?socket={world.root}/run/libvirt/virtvzd-sock"


@pytest.fixture
def python(world: World) -> Iterator[LibvirtPython]:
    """A client of the node `world`, which has to run already."""
    done = subprocess.run([PYTHON, "-c", "import libvirt"], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("python3-libvirt is not installed (script/bootstrap --dev)")
    world.run("prlctl", "list", "-a")
    client = LibvirtPython(socket_uri(world))
    yield client
    client.close()
