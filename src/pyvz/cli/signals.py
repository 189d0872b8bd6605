"""The C half of `signal`: the Python half loads `enum`, a third of a command line's start-up time.

from pyvz.cli.signals import signal
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ["signal"]
