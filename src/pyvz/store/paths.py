"""Every path of a node, derived from one root, so that two nodes can live on one machine.

<root>/etc/vz/                 vz.conf, conf/, names/          as OpenVZ 7 has it
<root>/vz/                     private/ root/ template/ lock/ dump/ tmp/ vmprivate/
<root>/run/pyvz/               sockets and run state (gone after a reboot)
<root>/var/lib/pyvz/           journals, tasks, id ranges
<root>/var/log/pyvz/           logs
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple


class Paths(NamedTuple):
    """The places of one node.  Made with Paths(Path("/")) or Paths(Path(os.environ[...]))."""

    root: Path

    @property
    def etc(self) -> Path:
        """Configuration: <root>/etc/vz."""
        return self.root / "etc/vz"

    @property
    def vz_conf(self) -> Path:
        """The global configuration file."""
        return self.etc / "vz.conf"

    @property
    def conf(self) -> Path:
        """Per-environment configuration links, samples and global action scripts."""
        return self.etc / "conf"

    @property
    def names(self) -> Path:
        """Links from names to configuration files."""
        return self.etc / "names"

    @property
    def vz(self) -> Path:
        """Data: <root>/vz."""
        return self.root / "vz"

    @property
    def private(self) -> Path:
        """Default parent of private areas."""
        return self.vz / "private"

    @property
    def ve_root(self) -> Path:
        """Parent of mount points."""
        return self.vz / "root"

    @property
    def aside(self) -> Path:
        """Parent of mounts that are there for a while, to look at a disk or to fill it.

        Below `ve_root`, whose mounts are shared: what is unmounted goes away in copies, too.
        """
        return self.ve_root / ".aside"

    @property
    def template(self) -> Path:
        """EZ templates and their caches."""
        return self.vz / "template"

    @property
    def lock(self) -> Path:
        """Lease files (LOCKDIR)."""
        return self.vz / "lock"

    @property
    def run(self) -> Path:
        """Sockets and run state."""
        return self.root / "run/pyvz"

    @property
    def lib(self) -> Path:
        """Journals, tasks and allocations that survive a reboot."""
        return self.root / "var/lib/pyvz"

    @property
    def log(self) -> Path:
        """Log directory."""
        return self.root / "var/log/pyvz"

    @property
    def vzd_socket(self) -> Path:
        """The API socket."""
        return self.run / "vzd.sock"

    @property
    def keeper_socket(self) -> Path:
        """The keeper's control socket."""
        return self.run / "keeper.sock"

    @property
    def instance(self) -> str:
        """A short name of this node that is unique on the machine: "pyvz", or "pyvz-<hash>"."""
        if self.root == Path("/"):
            return "pyvz"
        return "pyvz-" + hashlib.sha256(os.fspath(self.root).encode()).hexdigest()[:8]
