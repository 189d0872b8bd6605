"""Errors as libvirt's clients understand them: a code, and a sentence that is shown as it is.

Clients act on some codes (reference/libvirt-rpc.md, 2.7): 3 means "this daemon cannot do that" and
is never a popup; 42, 43, 49 ... mean "there is no such object"; 55 "not in this state".
"""

from __future__ import annotations

from typing import Any, Final

from pyvz import errors
from pyvz.errors import VZError

INTERNAL: Final = 1
NO_SUPPORT: Final = 3
INVALID_ARGUMENT: Final = 8
FAILED: Final = 9
XML: Final = 27
DENIED: Final = 29
SYSTEM: Final = 38
UNKNOWN_PROGRAM: Final = 39
NO_DOMAIN: Final = 42
NO_NETWORK: Final = 43
NO_POOL: Final = 49
NO_VOLUME: Final = 50
NO_NODE_DEVICE: Final = 53
OPERATION_INVALID: Final = 55
NO_INTERFACE: Final = 57
NO_NWFILTER: Final = 62
NO_SECRET: Final = 66
UNSUPPORTED: Final = 67
TIMEOUT: Final = 68
NO_SNAPSHOT: Final = 72
ABORTED: Final = 78
NO_METADATA: Final = 80
OPERATION_UNSUPPORTED: Final = 84
CPU_INCOMPATIBLE: Final = 91
MIGRATE_FINISHED: Final = 93
NO_DEVICE: Final = 99  # VIR_ERR_DEVICE_MISSING
NO_CHECKPOINT: Final = 103
NO_BACKUP: Final = 104
CHECKPOINT_LOST: Final = 109

_VZ: Final = 48  # the error domain of the vz driver
_LEVEL: Final = 2  # an error

# The nearest class decides (a subclass may have its own row).
CODES: Final[dict[type[VZError], int]] = {
    VZError: FAILED,
    errors.UsageError: INVALID_ARGUMENT,
    errors.ConfigError: UNSUPPORTED,
    errors.NotFound: INVALID_ARGUMENT,
    errors.EnvironmentNotFound: NO_DOMAIN,
    errors.SnapshotNotFound: NO_SNAPSHOT,
    errors.CheckpointNotFound: NO_CHECKPOINT,
    errors.CheckpointLost: CHECKPOINT_LOST,
    errors.InvalidState: OPERATION_INVALID,
    errors.AlreadyExists: FAILED,
    errors.Locked: TIMEOUT,
    errors.Unsupported: OPERATION_UNSUPPORTED,
    errors.Timeout: TIMEOUT,
    errors.Cancelled: ABORTED,
    errors.NoSpace: SYSTEM,
    errors.PermissionDenied: DENIED,
    errors.InternalError: INTERNAL,
}


class Failure(VZError):
    """An error that the gateway itself has to tell, with its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: VZError) -> int:
    """Return the number that clients know for an error."""
    if isinstance(error, Failure):
        return error.code
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def described(error: VZError) -> dict[str, Any]:
    """Return the structure `error` of the protocol; the hint belongs to the sentence."""
    text = error.message if not error.hint else f"{error.message.rstrip('.')}. {error.hint}"
    return {
        "code": code_of(error), "domain": _VZ, "message": text, "level": _LEVEL, "dom": None,
        "str1": text, "str2": None, "str3": None, "int1": -1, "int2": -1, "net": None,
    }  # fmt: skip
