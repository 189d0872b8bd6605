"""The state of a machine's TPM: a directory of its home that belongs to the machine's user.

swtpm runs as that user and may be in the hands of the guest: nothing that it leaves there is
followed or trusted to be what it should be.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.errors import StorageError
from pyvz.linux.file import write_atomic
from pyvz.model.environment import Environment
from pyvz.vm import tpm
from pyvz.vm.tpm import Companion

MAX_STATE: Final = 1 << 20  # bytes; a TPM has some 10 KiB
_LOCK: Final = ".lock"  # swtpm's


def path(env: Environment) -> Path:
    """Return the file that holds what the TPM knows."""
    return env.home / tpm.DIRECTORY / tpm.STATE


def open_all(env: Environment, uid: int, opened: ExitStack) -> tuple[int, Companion]:
    """Return QEMU's end of the way to the TPM, and the TPM; OPENED closes the descriptors.

    Raises Unsupported (no swtpm), StorageError.
    """
    tpm.check()
    directory = env.home / tpm.DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(directory, flags)
    opened.callback(os.close, descriptor)
    _give(descriptor, uid)
    ours, theirs = socket.socketpair()
    opened.enter_context(ours)
    opened.enter_context(theirs)
    return ours.fileno(), tpm.companion(descriptor, theirs.fileno())


def _give(directory: int, uid: int) -> None:
    """Make the directory and the state in it UID's, which differs from node to node."""
    os.fchown(directory, uid, uid)
    for name in os.listdir(directory):
        if name not in {tpm.STATE, _LOCK}:
            continue
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise StorageError(f"{name} of the TPM is not what a TPM leaves")
        os.chown(name, uid, uid, dir_fd=directory, follow_symlinks=False)


def state(env: Environment) -> bytes | None:
    """Return what the TPM knows, None when there was none yet; raises StorageError."""
    try:
        descriptor = os.open(path(env), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_STATE:
            raise StorageError(f"{path(env)} is not what a TPM leaves")
        return file.read(MAX_STATE)


def put_back(env: Environment, data: bytes | None) -> None:
    """Have the TPM know DATA at its next start; None: it begins anew.  The machine is stopped."""
    directory = env.home / tpm.DIRECTORY
    shutil.rmtree(directory, ignore_errors=True)
    if data is not None:
        directory.mkdir(mode=0o700)
        write_atomic(path(env), data, 0o600)
