"""pyvz itself, measured as a node of its own below the scratch folder (PYVZ_ROOT)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

from bench.peer import Missing, Peer, parent, require, unmount_below

TEMPLATE = "debian-12-x86_64"


class Pyvz(Peer):
    """Unprivileged containers; one daemon and one keeper for all of them."""

    name = "pyvz"
    programs = ("prlctl", "zstd")

    def environment(self) -> dict[str, str]:
        return {"PYVZ_ROOT": str(self.home)}

    def setup(self) -> None:
        require(self.programs)
        cache = self.home / "vz/template/cache"
        cache.mkdir(parents=True)
        for name, image in ((TEMPLATE, self.place.image), ("tiny-1-x86_64", self.place.tiny)):
            target = f"{cache}/{name}.plain.tar.zst"
            self.run(["zstd", "-q", "-T0", "-3", str(image), "-o", target])
        self.run(["prlctl", "list"])  # starts the daemon

    def clean(self) -> None:
        if not self.home.exists():
            return
        for line in self.run(["prlctl", "list", "-a", "-H", "-o", "name"], check=False).split():
            self.run(["prlctl", "stop", line, "--kill"], check=False)
            self.run(["prlctl", "delete", line], check=False)
        self.run(["prlsrvctl", "shutdown", "--force"], check=False)
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)  # the keeper takes no other signal
        time.sleep(0.5)
        unmount_below(self.home)
        shutil.rmtree(self.home, ignore_errors=True)

    def create(self, name: str) -> list[str]:
        return ["prlctl", "create", name, "--vmtype", "ct", "--ostemplate", TEMPLATE]

    def create_tiny(self, name: str) -> list[str]:
        return ["prlctl", "create", name, "--vmtype", "ct", "--ostemplate", "tiny-1-x86_64"]

    def start(self, name: str) -> list[str]:
        return ["prlctl", "start", name]

    def exec(self, name: str, *argv: str) -> list[str]:
        return ["prlctl", "exec", name, "--without-shell", *argv]

    def listing(self) -> list[str]:
        return ["prlctl", "list", "-a"]

    def limit(self, name: str, percent: int) -> list[str]:
        return ["prlctl", "set", name, "--cpulimit", str(percent)]

    def stop(self, name: str) -> list[str]:
        return ["prlctl", "stop", name]

    def kill(self, name: str) -> list[str]:
        return ["prlctl", "stop", name, "--kill"]

    def delete(self, name: str) -> list[str]:
        return ["prlctl", "delete", name]

    def init(self, name: str) -> int:
        """The child of the keeper that is PID 1 of the container with that UUID."""
        row = self.run(["prlctl", "list", "-H", "-o", "uuid,name"], check=False)
        found = re.search(rf"^\{{?([0-9a-f-]+)\}}?\s+{re.escape(name)}\s*$", row, re.MULTILINE)
        if not found:
            return 0
        keepers = set(self.processes())
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or parent(int(entry.name)) not in keepers:
                continue
            with contextlib.suppress(OSError):
                if found.group(1) in (entry / "cgroup").read_text():
                    return int(entry.name)
        return 0

    def daemons(self) -> list[int]:
        found = self.processes()
        if not found:
            raise Missing("neither vzd nor the keeper is there")
        return found

    def processes(self) -> list[int]:
        """vzd and the keeper of this node: they name its root or its socket when started."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                inside = any(os.fsencode(self.home) in word for word in words)
                if inside and any(word.startswith(b"pyvz.") for word in words):
                    found.append(int(entry.name))
        return found
