"""The errors of pyvz: what happened, in words for people, without any exit code.

Every face (prlctl, vzctl, vzpkg, Varlink, ...) owns one table from type to code, looked up along
the class's MRO; a test proves that every type here resolves in every face.  Over Varlink an error
travels as ``io.pyvz.<ClassName>`` with its ``message``, ``details`` and ``hint``; the command
lines build the same class from that name again, so this module imports nothing.
"""


class VZError(Exception):
    """Base of every error that a user may see.

    message: one line, what was asked and why it failed.
    details: further lines (a program's last words, a list of holders), may be empty.
    hint: what the user can do about it, may be empty.
    """

    def __init__(self, message: str, *, details: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.hint = hint


class UsageError(VZError):
    """The command line or call does not make sense; nothing was changed."""


class BadValue(UsageError):
    """An option or parameter was given a value outside its grammar or range."""


class ConfigError(VZError):
    """A configuration file holds something that cannot be understood (names file, line, key)."""


class NotFound(VZError):
    """No such environment, template, disk, session, ..."""


class EnvironmentNotFound(NotFound):
    """No container or VM answers to that id or name."""


class TemplateNotFound(NotFound):
    """No such template, or no cache of it."""


class SnapshotNotFound(NotFound):
    """The container has no snapshot of that id."""


class DiskNotFound(NotFound):
    """The container has no disk of that name or id."""


class VeNotRegistered(NotFound):
    """The memory manager knows nobody of that name."""


class PolicyNotFound(NotFound):
    """There is no memory policy of that name."""


class AlreadyExists(VZError):
    """An object of that name or id is there already."""


class InvalidState(VZError):
    """The environment is in a state in which this cannot be done."""


class NotRunning(InvalidState):
    """The environment must run for this and does not."""


class AlreadyRunning(InvalidState):
    """The environment runs already."""


class NotMounted(InvalidState):
    """The environment's root is not mounted."""


class AlreadyMounted(InvalidState):
    """The environment's root is mounted already."""


class Disabled(InvalidState):
    """The environment is marked DISABLED and start was not forced."""


class Locked(VZError):
    """Somebody else works on the environment (the message says who and at what)."""


class Unsupported(VZError):
    """This kernel, machine, driver or version cannot do it (the message says why)."""


class NotEnoughResources(VZError):
    """The node cannot give what was asked for."""


class GuaranteeRefused(NotEnoughResources):
    """The node cannot promise that much memory beside what it has promised already."""


class NoSpace(NotEnoughResources):
    """The file system is full."""


class Timeout(VZError):
    """It did not happen before its deadline."""


class Cancelled(VZError):
    """The user, or a client that went away, called it off; it was undone."""


class CommandFailed(VZError):
    """A program that we ran failed (details hold its last words)."""


class ActionScriptFailed(VZError):
    """An action script (vps.mount, start, ...) ended with an error."""


class StorageError(VZError):
    """A disk, image or private area could not be made, attached, mounted or removed."""


class MountError(StorageError):
    """Mounting or unmounting failed."""


class Busy(MountError):
    """It is in use and cannot be unmounted, detached or removed."""


class SnapshotError(StorageError):
    """A snapshot could not be made, deleted, mounted, or switched to."""


class PrivateExists(StorageError, AlreadyExists):
    """The private area is there already."""


class PrivateMissing(StorageError, NotFound):
    """The private area is not there."""


class BackupNotFound(NotFound):
    """There is no such backup."""


class CheckpointNotFound(NotFound):
    """The virtual machine has no checkpoint of that name (as libvirt means them)."""


class CheckpointLost(StorageError):
    """Nothing tells any more what changed on a disk since a checkpoint: its bitmap is lost."""


class BackupDamaged(StorageError):
    """Data of a backup is missing or not what was written (names the backup, file or block)."""


class GuestFileError(VZError):
    """A file inside the environment is not what it must be (a FIFO, a device, far too large)."""


class NetworkError(VZError):
    """An interface, address or rule could not be put in place."""


class NetworkInUse(NetworkError):
    """A virtual network cannot go while containers or others are plugged into it."""


class AddressInUse(NetworkError):
    """An IP address belongs to another container, to the node, or to somebody on the network."""


class TemplateError(VZError):
    """A template is broken, or its packages could not be installed."""


class CacheExists(TemplateError, AlreadyExists):
    """The cache is there already."""


class CacheMissing(TemplateError, NotFound):
    """The template has no cache yet."""


class TemplateInstalled(TemplateError, AlreadyExists):
    """The application template is in the container already."""


class TemplateNotInstalled(TemplateError, NotFound):
    """The container has no such application template or package."""


class FileMissing(NotFound):
    """A file of the node that was named is not there."""


class StartError(VZError):
    """The container engine could not bring init up (details: the step and the kernel's answer)."""


class StopError(VZError):
    """The environment could not be stopped."""


class SetError(VZError):
    """A parameter could not be applied to the running environment; nothing was saved."""


class PasswordError(SetError):
    """The guest refused the new password."""


class ExecError(VZError):
    """The program could not be started inside the environment."""


class MonitorError(SetError):
    """QEMU refused a command (the message says what it said)."""


class AgentError(VZError):
    """The guest agent refused a command (the message is the agent's)."""


class NoAgent(NotRunning):
    """The guest of a virtual machine has no agent that answers."""


class CheckpointError(VZError):
    """The container could not be frozen to disk; it goes on running."""


class NotNow(CheckpointError):
    """The container was just doing something that cannot be saved; in a moment it will be past."""


class RestoreError(VZError):
    """The container could not be brought back; its images are kept."""


class MigrationError(VZError):
    """An environment could not be moved to another node; it is where it was."""


class ConnectionFailed(MigrationError):
    """The other node cannot be reached, or has no pyvz."""


class ConnectionBroken(MigrationError):
    """The connection to the other node broke while it was in use."""


class ProtocolError(MigrationError):
    """The other node says what makes no sense, or speaks another version."""


class NodesDiffer(MigrationError):
    """The other node lacks what the environment needs (CPU, kernel, network, file system, ...)."""


class InDoubt(MigrationError):
    """The connection broke while the other node was taking over; it has to be asked."""


class PermissionDenied(VZError):
    """The caller may not do this."""


class DaemonUnreachable(VZError):
    """vzd does not answer and could not be started."""


class InternalError(VZError):
    """A defect of pyvz; the log has the traceback."""
