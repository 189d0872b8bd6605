"""The exit codes of every tool: one table per dialect, from error class to code.

A code is looked up along the class's MRO, so that a table only names the classes that differ from
their base; a test proves that every class of pyvz.errors resolves in every dialect.  Sources:
prlctl Utils.cpp (prlerr2exitcode), libvzctl vzerror.h.
"""

from __future__ import annotations

from pyvz import errors

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

TYPE_CHECKING = False
if TYPE_CHECKING:
    Table = dict[type[errors.VZError], int]

PRLCTL: Table = {
    errors.VZError: 255,
    errors.UsageError: 1,
    errors.DaemonUnreachable: 253,
    errors.Cancelled: INTERRUPTED,
}

VZCTL: Table = {
    errors.VZError: 3,
    errors.NotEnoughResources: 6,
    errors.GuaranteeRefused: 226,  # VZCTL_E_VCMM
    errors.StartError: 7,
    errors.ExecError: 8,
    errors.Locked: 9,
    errors.EnvironmentNotFound: 14,
    errors.CheckpointError: 16,
    errors.RestoreError: 17,
    errors.UsageError: 20,
    errors.BadValue: 21,
    errors.NotRunning: 31,
    errors.AlreadyRunning: 32,
    errors.StopError: 33,
    errors.NetworkError: 104,
    errors.AddressInUse: 78,
    errors.NotMounted: 40,
    errors.AlreadyMounted: 41,
    errors.PrivateMissing: 43,
    errors.PrivateExists: 44,
    errors.AlreadyExists: 44,
    errors.NoSpace: 46,
    errors.TemplateError: 47,
    errors.StorageError: 48,
    errors.SnapshotError: 156,  # VZCTL_E_CREATE_SNAPSHOT; the verbs have their own, vzctl_snapshot
    errors.SnapshotNotFound: 156,
    errors.DiskNotFound: 165,  # VZCTL_E_DISK_CONFIGURE
    errors.MountError: 50,
    errors.Busy: 231,
    errors.PasswordError: 74,
    errors.ActionScriptFailed: 79,
    errors.ConfigError: 85,
    errors.TemplateNotFound: 91,
    errors.CacheMissing: 221,
    errors.Disabled: 105,
    errors.Timeout: 213,
    errors.Unsupported: 233,
    errors.Cancelled: INTERRUPTED,
}

VZPKG: Table = {
    errors.VZError: 1,
    errors.InternalError: 2,
    errors.ExecError: 3,
    errors.AlreadyExists: 6,
    errors.CommandFailed: 70,
    errors.NotFound: 9,
    errors.FileMissing: 9,
    errors.PermissionDenied: 10,
    errors.ConfigError: 14,
    errors.NotRunning: 15,
    errors.EnvironmentNotFound: 16,
    errors.NotMounted: 18,
    errors.InvalidState: 19,
    errors.Locked: 21,
    errors.CacheMissing: 23,
    errors.TemplateNotFound: 24,
    errors.TemplateError: 25,
    errors.TemplateNotInstalled: 26,
    errors.TemplateInstalled: 27,
    errors.CacheExists: 29,
    errors.UsageError: 35,
    errors.Unsupported: 73,
    errors.DaemonUnreachable: 55,
    errors.Cancelled: INTERRUPTED,
}

# libploop.h, SYSEXIT_*
PLOOP: Table = {
    errors.VZError: 12,
    errors.UsageError: 38,
    errors.AlreadyExists: 1,
    errors.FileMissing: 4,
    errors.StorageError: 11,
    errors.Unsupported: 13,
    errors.NoSpace: 7,
    errors.MountError: 21,
    errors.AlreadyMounted: 37,
    errors.Busy: 17,
    errors.Locked: 23,
    errors.NotMounted: 40,
    errors.NotFound: 43,
    errors.ConfigError: 39,
    errors.CommandFailed: 12,
    errors.Cancelled: 29,
}

# It executes ploop for disks of containers (CommandCt.cpp); what it refuses itself is -1.
DISK_TOOL: Table = {**PLOOP, errors.UsageError: 255}

VCMMDCTL: Table = {
    errors.VZError: 1,
    errors.UsageError: 2,  # optparse's
    errors.BadValue: 1,
    errors.Cancelled: INTERRUPTED,
}

# vzmigrate, src/common.h (MIG_ERR_*)
VZMIGRATE: Table = {
    errors.VZError: 2,
    errors.UsageError: 1,
    errors.Locked: 3,
    errors.ConnectionFailed: 4,
    errors.DaemonUnreachable: 4,
    errors.ConfigError: 5,
    errors.InvalidState: 5,
    errors.StorageError: 6,
    errors.MigrationError: 6,
    errors.StartError: 7,
    errors.StopError: 8,
    errors.PrivateExists: 9,
    errors.EnvironmentNotFound: 10,
    errors.NotEnoughResources: 11,
    errors.AddressInUse: 12,
    errors.ConnectionBroken: 21,
    errors.InDoubt: 21,
    errors.Timeout: 22,
    errors.Cancelled: 25,
    errors.ProtocolError: 26,
    errors.NoSpace: 31,
    errors.Unsupported: 32,
    errors.CheckpointError: 73,
    errors.RestoreError: 73,
    errors.AlreadyExists: 45,
    errors.CommandFailed: 52,
    errors.NodesDiffer: 57,
}

VZLIST: Table = {errors.VZError: 1, errors.Cancelled: INTERRUPTED}

DIALECTS: dict[str, Table] = {
    "prlctl": PRLCTL,
    "prlsrvctl": PRLCTL,
    "vzctl": VZCTL,
    "ploop": PLOOP,
    "prl_disk_tool": DISK_TOOL,
    "vzlist": VZLIST,
    "vznetstat": VZLIST,
    "pcompact": VZLIST,
    "vzubc": VZLIST,
    "vzstat": VZLIST,
    "vcmmdctl": VCMMDCTL,
    "vzpkg": VZPKG,
    "vzmigrate": VZMIGRATE,
    "vzmdest": VZMIGRATE,
}

INTERNAL: dict[str, int] = {
    "prlctl": 255,
    "prlsrvctl": 255,
    "vzctl": 3,
    "vzlist": 1,
    "vznetstat": 1,
    "pcompact": 1,
    "vzubc": 1,
    "vzstat": 1,
    "vcmmdctl": 1,
    "vzpkg": 2,
    "ploop": 12,
    "prl_disk_tool": 255,
    "vzmigrate": 2,
    "vzmdest": 2,
}


def exit_code(dialect: str, error: errors.VZError) -> int:
    """Return the exit code of the tool `dialect` for ERROR."""
    table = DIALECTS[dialect]
    for kind in type(error).__mro__:
        if kind in table:
            return table[kind]
    return INTERNAL[dialect]
