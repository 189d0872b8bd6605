"""A TCP client that sees every millisecond: how long the other end was silent.

    python bench/pingpong.py ADDRESS PORT

One byte goes and has to come back, again after a millisecond.  For every line on stdin the longest
silence since the last one is printed, in seconds.  Ends with a message when the connection breaks.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

PATIENCE = 600.0  # seconds


class Client:
    """One connection."""

    def __init__(self, address: str, port: int) -> None:
        self.sock = socket.create_connection((address, port), 60)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(PATIENCE)
        self.longest = 0.0

    def run(self) -> None:
        """Play for ever."""
        while True:
            began = time.monotonic()
            self.sock.sendall(b"x")
            if not self.sock.recv(1):
                raise ConnectionError("the connection was closed")
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.001)


def main() -> None:
    """Answer the lines on stdin while the game goes on."""
    client = Client(sys.argv[1], int(sys.argv[2]))
    game = threading.Thread(target=client.run, daemon=True)
    game.start()
    for _ in sys.stdin:
        if not game.is_alive():
            sys.exit("the connection broke")
        sys.stdout.write(f"{client.longest:.6f}\n")
        sys.stdout.flush()
        client.longest = 0.0


if __name__ == "__main__":
    main()
