"""The peers: runc, systemd-nspawn, LXC.  (pyvz itself is in ours.py, Incus in incus.py.)"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from bench.peer import Missing, Peer, parent, require, script, unmount_below

CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP SYS_CHROOT
"""

# Debian's systemd powers off on SIGRTMIN+4 (systemd(1)).
POWER_OFF = str(signal.SIGRTMIN + 4)

# Wait for the end of a process that is not ours; a zombie counts as ended.
WAIT_GONE = """#!/bin/bash
exec {nap}<> <(:)
while read -r _ _ state _ 2>/dev/null </proc/$1/stat && [ "$state" != Z ]; do
	read -r -t 0.002 -u $nap
done
exit 0
"""

RUNC_CREATE = """#!/bin/sh
mkdir -p "{home}/b/$1/rootfs" && tar -C "{home}/b/$1/rootfs" -xf "$2" &&
	cp "{home}/config.json" "{home}/b/$1/"
"""

RUNC_STOP = """#!/bin/bash
p=$(runc --root {home}/state state "$1" | sed -n 's/.*"pid": \\([0-9]*\\),.*/\\1/p')
runc --root {home}/state kill "$1" "$2"
{work}/wait-gone "$p"
exec runc --root {home}/state delete "$1"
"""

# One cgroup each, else nspawn without a systemd on the node puts all of them into one.
NSPAWN_START = """#!/bin/bash
d={home} c=$1
keep=
if [ ! -d /run/systemd/system ]; then
	keep=--keep-unit
	for h in systemd memory cpu; do mkdir -p /sys/fs/cgroup/$h/nspawn-$c; done
fi
(
	if [ -n "$keep" ]; then
		for h in systemd memory cpu; do
			echo $BASHPID >/sys/fs/cgroup/$h/nspawn-$c/cgroup.procs
		done
	fi
	exec setsid systemd-nspawn --register=no $keep -q -D "$d/$c" -M "$c" --private-network \\
		--console=pipe -b
) >/dev/null 2>&1 </dev/null &
p=$!
echo $p >"$d/$c.pid"
exec {{nap}}<> <(:)
while kill -0 $p 2>/dev/null; do
	read -r kid _ </proc/$p/task/$p/children 2>/dev/null
	if [ -n "${{kid:-}}" ] && read -r n </proc/$kid/comm && [ "$n" = systemd ]; then
		echo "$kid" >"$d/$c.init"
		exit 0
	fi
	read -r -t 0.002 -u $nap
done
exit 1
"""

NSPAWN_STOP = """#!/bin/bash
p=$(<"{home}/$1.pid")
kill "-$2" "$(<"{home}/$1.init")"
exec {work}/wait-gone "$p"
"""

NSPAWN_DELETE = """#!/bin/sh
rm -rf --one-file-system "{home}/$1"
rm -f "{home}/$1.pid" "{home}/$1.init"
rmdir /sys/fs/cgroup/*/nspawn-"$1" 2>/dev/null
true
"""

UNTAR = """#!/bin/sh
mkdir "$2" && tar -C "$2" -xf "$1"
"""

LXC_TINY = """#!/bin/sh
d={home}/$1
mkdir -p "$d/rootfs" &&
	printf 'lxc.rootfs.path = dir:%s\\nlxc.uts.name = %s\\n' "$d/rootfs" "$1" >"$d/config"
"""

LXC_CONFIG = """\
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.mount.auto = cgroup:mixed proc:mixed sys:mixed
"""


class Runc(Peer):
    """A bundle for each container; nothing stays in memory.  Privileged, as runc is by default."""

    name = "runc"
    packages = ("runc",)
    programs = ("runc",)

    def setup(self) -> None:
        require(self.programs)
        for folder in ("b", "state", "spec"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        spec = self.home / "spec/config.json"
        spec.unlink(missing_ok=True)
        self.run(["runc", "spec", "--bundle", str(spec.parent)])
        self.configure(spec)
        work = self.place.work
        script(work / "wait-gone", WAIT_GONE)
        script(self.home / "create", RUNC_CREATE.format(home=self.home))
        script(self.home / "stop", RUNC_STOP.format(home=self.home, work=work))

    def configure(self, spec: Path) -> None:
        """What a systemd inside needs, in runc's own configuration."""
        config = json.loads(spec.read_text())
        process, linux = config["process"], config["linux"]
        process.update(terminal=False, args=["/sbin/init"], noNewPrivileges=False)
        process["env"].append("container=oci")
        process.pop("rlimits", None)
        names = [f"CAP_{name}" for name in CAPABILITIES.split()]
        process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
        config["root"].update(readonly=False, path="rootfs")
        kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup")
        linux["namespaces"] = [{"type": kind} for kind in kinds]
        linux["maskedPaths"] = linux["readonlyPaths"] = []
        for mount in config["mounts"]:
            if mount["destination"] == "/sys/fs/cgroup":
                mount["options"] = [word for word in mount["options"] if word != "ro"]
        options = ["nosuid", "nodev", "mode=755"]
        run = {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": options}
        config["mounts"].append(run)
        (self.home / "config.json").write_text(json.dumps(config))

    def clean(self) -> None:
        for bundle in (self.home / "b").glob("*"):
            self.run([*self.runc(), "delete", "-f", bundle.name], check=False)
        unmount_below(self.home)

    def runc(self) -> list[str]:
        """The program with its state folder."""
        return ["runc", "--root", f"{self.home}/state"]

    def create(self, name: str) -> list[str]:
        return [f"{self.home}/create", name, str(self.place.image)]

    def start(self, name: str) -> list[str]:
        return [*self.runc(), "run", "-d", "-b", f"{self.home}/b/{name}", name]

    def exec(self, name: str, *argv: str) -> list[str]:
        return [*self.runc(), "exec", name, *argv]

    def listing(self) -> list[str]:
        return [*self.runc(), "list"]

    def limit(self, name: str, percent: int) -> list[str]:
        return [*self.runc(), "update", "--cpu-quota", str(percent * 1000), name]

    def stop(self, name: str) -> list[str]:
        return [f"{self.home}/stop", name, POWER_OFF]

    def kill(self, name: str) -> list[str]:
        return [f"{self.home}/stop", name, "KILL"]

    def delete(self, name: str) -> list[str]:
        return ["rm", "-rf", f"{self.home}/b/{name}"]

    def init(self, name: str) -> int:
        try:
            state = json.loads(self.run([*self.runc(), "state", name]))
        except (Missing, ValueError):
            return 0
        return int(state["pid"]) if state["status"] == "running" else 0


class Nspawn(Peer):
    """A folder and a monitor process for each container; there is no list without machined."""

    name = "systemd-nspawn"
    packages = ("systemd-container",)
    programs = ("systemd-nspawn", "nsenter")

    def setup(self) -> None:
        require(self.programs)
        work, home = self.place.work, self.home
        script(work / "wait-gone", WAIT_GONE)
        script(home / ".bin/start", NSPAWN_START.format(home=home))
        script(home / ".bin/stop", NSPAWN_STOP.format(home=home, work=work))
        script(home / ".bin/delete", NSPAWN_DELETE.format(home=home))
        script(home / ".bin/create", UNTAR)

    def clean(self) -> None:
        for file in self.home.glob("*.init"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
                self.run([f"{self.place.work}/wait-gone", file.with_suffix(".pid").read_text()])
            self.run([f"{self.home}/.bin/delete", file.stem], check=False)

    def create(self, name: str) -> list[str]:
        return [f"{self.home}/.bin/create", str(self.place.image), f"{self.home}/{name}"]

    def start(self, name: str) -> list[str]:
        return [f"{self.home}/.bin/start", name]

    def exec(self, name: str, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self.init(name)), "-m", "-u", "-i", "-n", "-p", *argv]

    def stop(self, name: str) -> list[str]:
        return [f"{self.home}/.bin/stop", name, POWER_OFF]

    def kill(self, name: str) -> list[str]:
        return [f"{self.home}/.bin/stop", name, "KILL"]

    def delete(self, name: str) -> list[str]:
        return [f"{self.home}/.bin/delete", name]

    def init(self, name: str) -> int:
        try:
            pid = int((self.home / f"{name}.init").read_text())
        except (OSError, ValueError):
            return 0
        return pid if parent(pid) else 0


class Lxc(Peer):
    """Plain LXC: a monitor process for each container, its state in cgroups and sockets."""

    name = "lxc"
    packages = ("lxc", "xz-utils")
    programs = ("lxc-create", "lxc-start", "xz")

    def setup(self) -> None:
        require(self.programs)
        self.home.mkdir(parents=True, exist_ok=True)
        work = self.place.work
        (work / "lxc.conf").write_text(LXC_CONFIG)
        meta = work / "lxc-meta"
        meta.mkdir(exist_ok=True)
        for name in ("config", "config-user"):
            text = "lxc.include = LXC_TEMPLATE_CONFIG/common.conf\nlxc.arch = x86_64\n"
            (meta / name).write_text(text)
        (meta / "excludes-user").write_text("")
        self.run(["tar", "-C", str(meta), "-cJf", f"{work}/lxc-meta.tar.xz", "."])
        self.run(["sh", "-c", f"xz -T0 -0 <{self.place.image} >{work}/lxc-image.tar.xz"])
        script(work / "lxc-tiny", LXC_TINY.format(home=self.home))

    def clean(self) -> None:
        for config in self.home.glob("*/config"):
            self.run(
                ["lxc-stop", "-P", str(self.home), "-k", "-n", config.parent.name], check=False
            )
            self.run(self.delete(config.parent.name), check=False)

    def create(self, name: str) -> list[str]:
        work = self.place.work
        # fmt: off
        return ["lxc-create", "-P", str(self.home), "-f", f"{work}/lxc.conf", "-B", "dir",
                "-n", name, "-t", "local", "--", "-m", f"{work}/lxc-meta.tar.xz",
                "-f", f"{work}/lxc-image.tar.xz"]
        # fmt: on

    def create_tiny(self, name: str) -> list[str]:
        return [f"{self.place.work}/lxc-tiny", name]

    def start(self, name: str) -> list[str]:
        return ["lxc-start", "-P", str(self.home), "-d", "-n", name]

    def exec(self, name: str, *argv: str) -> list[str]:
        return ["lxc-attach", "-P", str(self.home), "-n", name, "--", *argv]

    def listing(self) -> list[str]:
        return ["lxc-ls", "-P", str(self.home), "-f"]

    def limit(self, name: str, percent: int) -> list[str]:
        key, value = "cpu.cfs_quota_us", str(percent * 1000)
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            key, value = "cpu.max", f"{percent * 1000} 100000"
        return ["lxc-cgroup", "-P", str(self.home), "-n", name, key, value]

    def stop(self, name: str) -> list[str]:
        return ["lxc-stop", "-P", str(self.home), "-n", name]

    def kill(self, name: str) -> list[str]:
        return ["lxc-stop", "-P", str(self.home), "-k", "-n", name]

    def delete(self, name: str) -> list[str]:
        return ["lxc-destroy", "-P", str(self.home), "-n", name]

    def init(self, name: str) -> int:
        told = self.run(["lxc-info", "-P", str(self.home), "-n", name, "-p", "-H"], check=False)
        return int(told) if told.strip().isdigit() else 0
