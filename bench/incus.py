"""Incus as a peer: a daemon of its own below the scratch folder, storage "dir"."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bench.peer import Missing, Peer, require, unmount_below, until

DAEMON = "/usr/libexec/incus/incusd"


class Incus(Peer):
    """Unprivileged containers behind a daemon, a monitor process for each."""

    name = "incus"
    packages = ("incus-base",)
    programs = ("incus", DAEMON)
    suite = "bookworm-backports"

    process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        return {"INCUS_DIR": f"{self.home}/d", "HOME": f"{self.home}/home"}

    def setup(self) -> None:
        require(self.programs)
        for name in ("d", "home"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        self.raise_inotify()
        # Stays until clean; its own folder, so that an Incus of the machine is left alone.
        with (self.home / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [DAEMON, "--group", "root"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment()},
            )
        self.run(["incus", "admin", "waitready", "--timeout", "30"])
        self.import_images()
        self.run(["incus", "storage", "create", "p", "dir"])
        self.run(["incus", "init", "-q", "img", "warm", "-s", "p"])
        self.run(["incus", "delete", "-q", "warm"])

    def raise_inotify(self) -> None:
        """Unprivileged containers share one node user's inotify instances."""
        file = Path("/proc/sys/fs/inotify/max_user_instances")
        if int(file.read_text()) < 8192:
            file.write_text("8192")

    def import_images(self) -> None:
        """The same two images as for everybody, with the description that Incus wants."""
        text = (
            f"architecture: x86_64\ncreation_date: {int(time.time())}\nproperties: {{os: debian}}\n"
        )
        (self.home / "metadata.yaml").write_text(text)
        meta = f"{self.home}/meta.tar"
        self.run(["tar", "-C", str(self.home), "-cf", meta, "metadata.yaml"])
        for alias, image in (("img", self.place.image), ("tiny", self.place.tiny)):
            packed = f"{self.home}/{alias}.tar.gz"
            self.run(["sh", "-c", f"gzip -1 <{image} >{packed}"])
            self.run(["incus", "image", "import", meta, packed, "--alias", alias])

    def clean(self) -> None:
        if self.process is None:
            return
        for name in self.run(["incus", "list", "-c", "n", "-f", "csv"], check=False).split():
            self.run(["incus", "delete", "-f", name], check=False)
        for name in self.run(
            ["incus", "image", "list", "-c", "f", "-f", "csv"], check=False
        ).split():
            self.run(["incus", "image", "delete", name], check=False)
        self.run(["incus", "storage", "delete", "p"], check=False)
        self.run(["incus", "admin", "shutdown", "--force", "--timeout", "20"], check=False)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        unmount_below(self.home)

    def create(self, name: str) -> list[str]:
        return ["incus", "init", "-q", "img", name, "-s", "p"]

    def create_tiny(self, name: str) -> list[str]:
        return ["incus", "init", "-q", "tiny", name, "-s", "p"]

    def start(self, name: str) -> list[str]:
        return ["incus", "start", "-q", name]

    def exec(self, name: str, *argv: str) -> list[str]:
        return ["incus", "exec", name, "--", *argv]

    def listing(self) -> list[str]:
        return ["incus", "list"]

    def limit(self, name: str, percent: int) -> list[str]:
        return ["incus", "config", "set", name, f"limits.cpu.allowance={percent}ms/100ms"]

    def stop(self, name: str) -> list[str]:
        return ["incus", "stop", "-q", name]

    def kill(self, name: str) -> list[str]:
        return ["incus", "stop", "-q", "-f", name]

    def delete(self, name: str) -> list[str]:
        return ["incus", "delete", "-q", name]

    def init(self, name: str) -> int:
        told = self.run(["incus", "list", f"^{name}$", "-c", "p", "-f", "csv"], check=False)
        return int(told) if told.strip().isdigit() else 0

    def daemons(self) -> list[int]:
        if self.process is None:
            raise Missing("incusd does not run")
        until(lambda: Path(f"/proc/{self.process.pid if self.process else 0}").exists(), "incusd")
        return [self.process.pid]
