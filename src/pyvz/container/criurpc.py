"""Speaking with one `criu swrk`: protobuf messages over the socket that the keeper handed over.

A request is answered by any number of notifications, each of which waits for our word, and at the
end by a response.  CRIU that hears nothing more of us (we are gone) takes that for "no".
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import DecodeError

from pyvz.container import criu_pb2, protocol
from pyvz.errors import CheckpointError, Timeout
from pyvz.linux.process import Pidfd

_PACKET = 1 << 20
_FDS = 8
_END_TIMEOUT = 10.0

# (event, pid of the restored init or 0, descriptors) -> whether it may go on; descriptors are the
# callee's.
Notify = Callable[[str, int, list[int]], bool]


class CriuDied(CheckpointError):
    """CRIU ended without an answer."""


class CriuConnection:
    """One CRIU process and its socket, both ours to end.  It serves one request."""

    def __init__(self, sock: int, pid: int, started: int) -> None:
        self._sock = socket.socket(fileno=sock)
        self.pid = pid
        self._started = started

    def call(
        self, request: criu_pb2.criu_req, notify: Notify | None = None, *, timeout: float
    ) -> criu_pb2.criu_resp:
        """Send a request and follow it to its response.

        timeout: seconds of silence that end it (SIGKILL); what `notify` takes does not count.
        What `notify` raises is raised when CRIU, told "no", has answered.
        Raises CriuDied, Timeout.
        """
        raised: BaseException | None = None
        self._send(request)
        while True:
            response, fds = self._receive(timeout)
            if response.type != criu_pb2.NOTIFY:
                protocol.close_all(fds)
                if raised is not None:
                    raise raised
                return response
            go_on = True
            try:
                go_on = self._told(response, fds, notify) and raised is None
            except BaseException as error:  # noqa: BLE001  # raised again below
                raised = raised or error
                go_on = False
            answer = criu_pb2.criu_req(type=criu_pb2.NOTIFY, notify_success=go_on)
            self._send(answer)

    def close(self) -> None:
        """Hang up, and see to it that the process is gone; idempotent."""
        self._sock.close()
        with suppress(ProcessLookupError), Pidfd(self.pid, self._started) as handle:
            if not handle.wait(_END_TIMEOUT):
                handle.signal(9)
                handle.wait(_END_TIMEOUT)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError), Pidfd(self.pid, self._started) as handle:
            handle.signal(9)
            handle.wait(_END_TIMEOUT)

    def _told(self, response: criu_pb2.criu_resp, fds: list[int], notify: Notify | None) -> bool:
        if notify is None:
            protocol.close_all(fds)
            return True
        return notify(response.notify.script, response.notify.pid, fds)

    def _send(self, request: criu_pb2.criu_req) -> None:
        try:
            self._sock.send(request.SerializeToString())
        except OSError as error:
            raise CriuDied(f"CRIU ended while it was at work ({error})") from error

    def _receive(self, timeout: float) -> tuple[criu_pb2.criu_resp, list[int]]:
        if not self._await(timeout):
            self.kill()
            raise Timeout(f"CRIU said nothing for {timeout:.0f} seconds and was ended")
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _PACKET, _FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise CriuDied(f"CRIU ended while it was at work ({error})") from error
        if not data:
            protocol.close_all(fds)
            raise CriuDied("CRIU ended while it was at work")
        try:
            return criu_pb2.criu_resp.FromString(data), list(fds)
        except DecodeError as error:
            protocol.close_all(fds)
            raise CriuDied("CRIU said something that is no response") from error

    def _await(self, timeout: float) -> bool:
        """Wait for a packet; False: none came.  Raises CriuDied when the process has ended.

        The end of the socket does not tell that: what CRIU was restoring has copies of it.
        """
        try:
            handle = Pidfd(self.pid, self._started)
        except ProcessLookupError:
            ready = False
        else:
            with handle:
                poller = select.poll()
                poller.register(self._sock.fileno(), select.POLLIN)
                poller.register(handle.fd, select.POLLIN)
                if not poller.poll(timeout * 1000):
                    return False
                ready = True
        if _has_packet(self._sock):
            return True
        raise CriuDied("CRIU ended while it was at work" if ready else "CRIU has ended")


def _has_packet(sock: socket.socket) -> bool:
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))
