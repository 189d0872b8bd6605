r"""IP private networks of the node, in files that an administrator can read and write.

    <etc>/privnets/<name>.conf

        NETS="10.1.0.0/24 10.2.0.0/24"     "*" among them: a weak network
        GLOBAL="no"

Files are written whole under `<etc>/privnets/.lock`; readers take no lock.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue, ConfigError, NotFound
from pyvz.linux import file
from pyvz.model.conffile import ConfFile
from pyvz.store import nodeconf
from pyvz.store.paths import Paths

WEAK = "*"
LOCK_TIMEOUT = 60.0  # seconds that a change waits for another one

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SUFFIX = ".conf"


class PrivateNet(NamedTuple):
    """One private network.  nets: "10.1.0.0/24", ..., or "*" (weak)."""

    name: str
    nets: tuple[str, ...] = ()
    is_global: bool = False


class PrivateNets:
    """The private networks of one node, read from their files at every call."""

    def __init__(self, paths: Paths) -> None:
        self._directory = paths.etc / "privnets"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold them for a change."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with file.flock(self._directory / ".lock", timeout=LOCK_TIMEOUT):
            yield

    def all(self) -> list[PrivateNet]:
        """Return every one by name; raises ConfigError for a damaged file.

        Nobody may take a wall down by a typing error: so none is left out.
        """
        return [self._read(path) for path in sorted(self._directory.glob(f"*{_SUFFIX}"))]

    def get(self, name: str) -> PrivateNet:
        """Return one; raises NotFound, ConfigError."""
        path = self._path(name)
        if not path.exists():
            raise NotFound(f"IP private network {name} does not exist.")
        return self._read(path)

    def exists(self, name: str) -> bool:
        """Whether there is one of that name; raises BadValue for no name."""
        return self._path(name).exists()

    def save(self, net: PrivateNet) -> None:
        """Write one, over its file when there is one."""
        path = self._path(net.name)
        conf = nodeconf.read_conf(path) if path.exists() else ConfFile.parse("")
        conf.set("NETS", " ".join(net.nets))
        conf.set("GLOBAL", "yes" if net.is_global else "no")
        file.write_atomic(path, conf.render())

    def remove(self, name: str) -> None:
        """Forget one; idempotent."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BadValue(
                f"'{name}' cannot be the name of a private network",
                hint="Up to 64 letters, digits, dots, dashes and underscores.",
            )
        return self._directory / f"{name}{_SUFFIX}"

    def _read(self, path: Path) -> PrivateNet:
        conf = nodeconf.read_conf(path)
        try:
            nets = tuple(parse_net(word) for word in (conf.get("NETS") or "").split())
        except BadValue as error:
            raise ConfigError(f"{path}: NETS: {error.message}") from error
        return PrivateNet(path.stem, nets, conf.get("GLOBAL") == "yes")


def parse_net(text: str) -> str:
    """Return the net that TEXT means ("10.1.2.3/24" is "10.1.2.0/24"), or "*"; BadValue."""
    if text == WEAK:
        return WEAK
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise BadValue(f"The following IP addresses are invalid: '{text}'") from None
