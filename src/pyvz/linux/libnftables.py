"""libnftables in this process: what `nft -j -f -` does, without a process for every batch.

A program of its own costs 20 ms and more, most of it when its socket is closed: the kernel then
waits until what a batch has deleted is out of use (NETLINK_URELEASE).  Here the socket stays open.

A context speaks to the network namespace in which it was made, so there is one for each namespace
that this process has been in, and none is taken along by a fork.  One batch at a time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import NamedTuple

_NAMES = ("libnftables.so.1",)
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON, nftables/libnftables.h
_lock = threading.Lock()
_contexts: dict[tuple[int, int], int] = {}  # by process and network namespace


class Answer(NamedTuple):
    """code: 0 is success.  output: JSON.  error: what libnftables has to say."""

    code: int
    output: str
    error: str


class Library:
    """The functions of libnftables(3) that we use; OSError when it is not installed."""

    def __init__(self) -> None:
        lib = ctypes.CDLL(_NAMES[0])
        self.new = lib.nft_ctx_new
        self.new.restype, self.new.argtypes = ctypes.c_void_p, [ctypes.c_uint32]
        self.run = lib.nft_run_cmd_from_buffer
        self.run.restype, self.run.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
        self.flags = lib.nft_ctx_output_set_flags
        self.flags.restype, self.flags.argtypes = None, [ctypes.c_void_p, ctypes.c_uint]
        self.keep_output, self.output = lib.nft_ctx_buffer_output, lib.nft_ctx_get_output_buffer
        self.keep_error, self.error = lib.nft_ctx_buffer_error, lib.nft_ctx_get_error_buffer
        for keep in (self.keep_output, self.keep_error):
            keep.restype, keep.argtypes = ctypes.c_int, [ctypes.c_void_p]
        for read in (self.output, self.error):
            read.restype, read.argtypes = ctypes.c_char_p, [ctypes.c_void_p]


_library: list[Library] = []


def run(commands: str) -> Answer | None:
    """Run JSON commands (libnftables-json(5)) or one written command; None: no library here."""
    with _lock:
        if not _library:
            try:
                _library.append(Library())
            except (OSError, AttributeError):
                return None
        lib = _library[0]
        context = _context(lib)
        if not context:
            return None
        code = lib.run(context, commands.encode())
        return Answer(code, _text(lib.output(context)), _text(lib.error(context)))


def _context(lib: Library) -> int:
    key = os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino
    if key not in _contexts:
        made = lib.new(0)
        if made:
            lib.flags(made, _OUTPUT_JSON)
            lib.keep_output(made)
            lib.keep_error(made)
        _contexts[key] = made or 0
    return _contexts[key]


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace").strip()
