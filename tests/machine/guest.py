"""The program inside the machine: one step after another, one JSON line each on the second port.

Standard library only: it is copied to the payload disk, with the modules beside it.  A step is a
function that raises on failure; the following steps run all the same, each makes what it needs.
The lines:
{"step": name, "ok": bool, "text": what was said, "seconds": float}, the last {"step": "end"}.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import guesthardware
import guestmigrate
import guestnetwork
import gueststorage
from guesttools import (
    MIB,
    NAME,
    PAYLOAD,
    SOURCES,
    STEPS,
    TEMPLATE,
    Failed,
    booted,
    ct,
    groups,
    limit,
    need,
    pid_of,
    run,
    running,
    status,
    step,
    until,
    uuid,
)

REPORT = Path("/dev/ttyS1")


@step
def machine() -> None:
    """systemd is PID 1, there is only the unified hierarchy, and no network."""
    run("uname", "-a")
    need(Path("/proc/1/comm").read_text().strip() == "systemd", "PID 1 is not systemd")
    mounts = Path("/proc/mounts").read_text()
    need(" cgroup2 " in mounts and " cgroup " not in mounts, "not cgroup v2 only")
    need(run("ip", "-o", "link").count("\n") == 1, "there is a network")


@step
def bootstrap() -> None:
    """The sources of this checkout are installed without a network; a second run does nothing."""
    shutil.copytree(PAYLOAD / "pyvz", SOURCES, symlinks=True)
    run(SOURCES / "script/bootstrap", "--wheels", PAYLOAD / "wheels", timeout=600)
    need(run(SOURCES / "script/bootstrap") == "", "the second run did something")
    cache = Path("/vz/template/cache")
    cache.mkdir(parents=True, exist_ok=True)
    for file in (PAYLOAD / "cache").iterdir():
        shutil.copy2(file, cache)


@step
def units() -> None:
    """The units are there, and systemd finds nothing wrong with them."""
    names = sorted(path.name for path in (SOURCES / "systemd").glob("*.s*"))
    need(names, "no unit is shipped")
    for name in names:
        run("systemd-analyze", "verify", f"/etc/systemd/system/{name}", code=None)
    run("systemctl", "is-enabled", "pyvz-vzd.service", code=None)


@step
def node() -> None:
    """The node says what it is; its services are systemd's."""
    told = run("prlsrvctl", "info")
    need("Hostname" in told, "no host name")
    need(run("systemctl", "is-active", "pyvz-vzd.service").strip() == "active", "vzd is no unit")
    need(TEMPLATE in run("vzpkg", "list", "-O"), "the template is not listed")


@step
def create() -> None:
    """A container is made from the template cache."""
    run("prlctl", "create", NAME, "--vmtype", "ct", "--ostemplate", TEMPLATE, timeout=600)
    need(status() == "stopped", "it is not stopped")
    again = ["prlctl", "create", NAME, "--vmtype", "ct", "--ostemplate", TEMPLATE]
    run(*again, code=255)


@step
def start() -> None:
    """It boots; systemd inside comes up without a failed unit."""
    run("prlctl", "start", NAME)
    need(status() == "running", "it does not run")
    answer = booted()
    if answer != "running":
        ct("systemctl", "--failed", "--no-pager", code=None)
        raise Failed(f"systemd says {answer}")


@step
def execute() -> None:
    """Programs run inside, with their output and exit status."""
    need("bookworm" in ct("cat", "/etc/os-release"), "another system")
    ct("exit 7", code=7)
    run("vzctl", "exec2", NAME, "exit 9", code=9)
    first, outside, count = ct("cat", "/proc/self/uid_map").split()[:3]
    need(first == "0" and int(outside) >= 65536 and count == "65536", "no unprivileged range")
    need(" cgroup " not in ct("cat", "/proc/mounts"), "cgroup v1 is visible inside")


@step
def limits() -> None:
    """Limits change while it runs, and the kernel has them."""
    running()
    run("prlctl", "set", NAME, "--memsize", "300M")
    need(int(limit("memory.max")) == 300 * MIB, "memory.max")
    run("prlctl", "set", NAME, "--swap", "64M")
    need(int(limit("memory.swap.max")) == 64 * MIB, "memory.swap.max")
    run("prlctl", "set", NAME, "--cpulimit", "50")
    quota, period = limit("cpu.max").split()
    need(int(quota) * 2 == int(period), "cpu.max")
    before = int(limit("cpu.weight"))
    run("prlctl", "set", NAME, "--cpuunits", "2000")
    need(int(limit("cpu.weight")) > before, "cpu.weight")
    run("prlctl", "set", NAME, "--cpumask", "1")
    need(limit("cpuset.cpus") == "1", "cpuset.cpus")
    run("vzctl", "set", NAME, "--numproc", "400:400", "--save")
    need(limit("pids.max") == "400", "pids.max")
    run("prlctl", "set", NAME, "--iolimit", "10", "--iopslimit", "100")
    need(limit("io.max"), "io.max")
    run("prlctl", "set", NAME, "--memsize", "512M", "--cpulimit", "0", "--cpumask", "all")
    need(limit("cpu.max").startswith("max"), "the CPU limit is still there")


@step
def figures_are_the_containers() -> None:
    """What programs inside read of memory, CPUs and uptime is the container's (lxcfs)."""
    running()
    run("prlctl", "set", NAME, "--memsize", "300M", "--swap", "64M", "--cpus", "1")
    told = dict(line.split(":") for line in ct("cat", "/proc/meminfo").splitlines())
    need(told["MemTotal"].split()[0] == str(300 << 10), "MemTotal")
    # lxcfs before 6 knows no limits of swap on cgroup v2: nothing then, but never the node's.
    need(int(told["SwapTotal"].split()[0]) in (0, 64 << 10), "SwapTotal")
    need(ct("grep", "-c", "^processor", "/proc/cpuinfo").strip() == "1", "the CPUs of the node")
    inside, outside = (float(x.split()[0]) for x in (ct("cat", "/proc/uptime"),
                                                     Path("/proc/uptime").read_text()))  # fmt: skip
    need(inside < outside, "the uptime of the node")
    run("prlctl", "set", NAME, "--memsize", "400M")  # seen at once
    need(f"{400 << 10} kB" in ct("grep", "MemTotal", "/proc/meminfo"), "the old MemTotal")
    run("prlctl", "set", NAME, "--memsize", "512M", "--cpus", "unlimited")


@step
def memory_is_limited() -> None:
    """A program inside that takes more than the limit is killed; the container goes on."""
    running()
    run("prlctl", "set", NAME, "--memsize", "200M", "--swap", "0")
    ct("head -c 400M /dev/zero | tail -c 390M | wc -c", code=None)
    need(int(re.findall(r"oom_kill (\d+)", limit("memory.events"))[0]) > 0, "nothing was killed")
    need(status() == "running", "it does not run any more")
    run("prlctl", "set", NAME, "--memsize", "512M")


@step
def memory_is_promised() -> None:
    """The guarantee is in force, up to the root; what cannot be kept is refused."""
    running()
    run("prlctl", "set", NAME, "--memsize", "512M", "--memguarantee", "25")
    need(int(limit("memory.min")) == 128 * MIB, "memory.min")
    above = groups()[0].parents[:-4]  # /sys/fs/cgroup has no such file
    need(all(int((g / "memory.min").read_text()) >= 128 * MIB for g in above), "memory.min above")
    said = run("vcmmdctl", "update", uuid(), "--guarantee", "3g", "--limit", "4g", code=1)
    need("Unable to apply VE guarantee" in said and "can promise only" in said, "not refused")
    for policy in ("noop", "performance", "density", "pressure"):
        run("vcmmdctl", "set-policy", policy)
        now = (int(limit("memory.max")) // MIB, int(limit("memory.min")) // MIB)
        need(now == (512, 128), f"{policy} touched limit or guarantee")
    run("prlctl", "set", NAME, "--memguarantee", "auto")


@step
def a_lower_limit_kills_nobody() -> None:
    """Page cache is given back for a lower limit; memory in use is a refusal."""
    running()
    killed = re.findall(r"oom_kill (\d+)", limit("memory.events"))
    ct("head -c 200M /dev/urandom >/root/cache && sync && cat /root/cache >/dev/null")
    run("prlctl", "set", NAME, "--memsize", "200M")
    ct("(head -c 100M /dev/zero; sleep 1000) </dev/null 2>&1 | tail -c 100M >/dev/null 2>&1 &")
    until(lambda: int(limit("memory.stat").split()[1]) > 100 * MIB, "it holds its memory")
    said = run("prlctl", "set", NAME, "--memsize", "64M", "--swap", "0", code=255)
    need("could give back only down to" in said, "no figures in the refusal")
    need(int(limit("memory.max")) == 200 * MIB, "the old limit is gone")
    need(limit("memory.high") == "max", "memory.high was left behind")
    need(re.findall(r"oom_kill (\d+)", limit("memory.events")) == killed, "somebody was killed")
    run("prlctl", "set", NAME, "--memsize", "512M")
    ct("pkill tail; rm /root/cache", code=None)


@step
def a_fork_bomb_ends_inside() -> None:
    """The number of processes is limited; the node still answers."""
    running()
    run("vzctl", "set", NAME, "--numproc", "150:150", "--save")
    said = ct(
        "for i in $(seq 250); do sleep 1000 </dev/null >/dev/null 2>&1 & done; true", code=None
    )
    need(int(limit("pids.current")) <= 150, "more processes than the limit")
    # Not by pids.events: before 6.12 the kernel counts where the fork was tried, in a leaf.
    need("temporarily unavailable" in said, "nothing was refused")
    # At its limit nothing can be started inside, not even from outside: first there must be room.
    run("vzctl", "set", NAME, "--numproc", "1000:1000", "--save")
    ct("pkill sleep", code=None)


@step
def pause_and_resume() -> None:
    """Frozen and thawed."""
    running()
    run("prlctl", "pause", NAME)
    need(status() == "paused", "not paused")
    frozen = [group for group in groups() if (group / "cgroup.freeze").read_text().strip() == "1"]
    need(frozen, "no cgroup is frozen")
    run("prlctl", "resume", NAME)
    ct("true")


step(guestmigrate.suspend_and_resume)
step(guestmigrate.precopy)


@step
def devices_are_refused() -> None:
    """A device node that was not granted cannot be opened, nor made."""
    running()
    need("ok" not in ct("mknod /tmp/vda b 254 0 && cat /tmp/vda >/dev/null && echo ok", code=None),
         "a disk of the node can be read inside")  # fmt: skip
    ct("head -c 10 /dev/urandom >/dev/null && echo x >/dev/null")


@step
def reboot_from_inside() -> None:
    """It comes back after a reboot from inside."""
    running()
    ct("touch /run/before")
    ct("systemctl --no-block reboot", code=None)
    time.sleep(2)

    def back() -> bool:
        return status() == "running" and "gone" in ct("test -e /run/before || echo gone", code=None)

    until(back, "it is back after the reboot")
    running()


@step
def vzd_is_killed() -> None:
    """Containers run on when vzd is killed; the next command works."""
    running()
    os.kill(pid_of(r"pyvz\.daemon\.main"), 9)
    until(lambda: NAME in run("prlctl", "list", "-H", "-o", "name", code=None), "list works", 60)
    need(status() == "running", "it does not run any more")
    ct("true")


@step
def vzd_is_restarted_by_systemd() -> None:
    """`systemctl restart` of the service leaves the containers alone."""
    running()
    born = ct("cut -d' ' -f22 /proc/1/stat")
    run("systemctl", "restart", "pyvz-vzd.service")
    need(ct("cut -d' ' -f22 /proc/1/stat") == born, "it has another init now")
    need(status() == "running", "it does not run any more")


@step
def keeper_is_killed() -> None:
    """Containers run on when the keeper is killed; a new one adopts them."""
    running()
    os.kill(pid_of(r"pyvz\.container\.keeper"), 9)
    time.sleep(1)
    need(status() == "running", "it does not run any more")
    until(lambda: "inside" in ct("echo inside", code=None), "exec works again", 60)
    run("prlctl", "stop", NAME)
    need(status() == "stopped", "it is not stopped")


@step
def stop() -> None:
    """An orderly stop, in time, with nothing left."""
    running()
    told = run("prlctl", "stop", NAME)
    need("successfully stopped" in told, "it was not orderly")
    need(status() == "stopped", "it is not stopped")
    run("prlctl", "stop", NAME)
    need(not groups(), "cgroups are left")
    need(uuid() not in Path("/proc/self/mountinfo").read_text(), "mounts are left")


@step
def kill() -> None:
    """A forced stop."""
    running()
    started = time.monotonic()
    run("prlctl", "stop", NAME, "--kill")
    print(f"{time.monotonic() - started:.1f} s")
    need(status() == "stopped" and not groups(), "something is left")


@step
def quota_of_users() -> None:
    """A user inside has a limit that the node sets, and it is kept; off again takes it away."""
    if status() != "stopped":
        run("prlctl", "stop", NAME)
    run("prlctl", "set", NAME, "--quotaugidlimit", "100")
    running()
    root = f"/vz/root/{uuid()}"
    run("setquota", "-u", "1000", "0", "2048", "0", "0", root)
    write = "install -d -o 1000 /srv/q; setpriv --reuid 1000 --clear-groups dd if=/dev/zero"
    said = ct(f"{write} of=/srv/q/f bs=1M count=8 2>&1", code=None)
    need("quota exceeded" in said, "the limit is not kept")
    need("1000" in run("repquota", "-u", root), "the node does not see who uses what")
    run("prlctl", "stop", NAME)
    run("prlctl", "set", NAME, "--quotaugidlimit", "0")
    running()
    ct(f"{write} of=/srv/q/g bs=1M count=8")
    run("prlctl", "stop", NAME)


step(gueststorage.directories_have_a_size)
step(guestnetwork.vlan)


@step
def exit_codes() -> None:
    """The codes of the originals."""
    run("prlctl", "status", "nobody", code=255)
    run("prlctl", "exec", NAME, "true", code=255)
    run("vzctl", "exec2", NAME, "true", code=31)
    run("vzctl", "set", NAME, "--cpuunits", "1", code=21)
    run("prlctl", "nonsense", code=1)


@step
def autostart() -> None:
    """ONBOOT containers stop with the node's service and start with it."""
    run("prlctl", "set", NAME, "--onboot", "yes")
    need("yes" in run("vzlist", "-a", "-H", "-o", "onboot"), "onboot is not set")
    run("prlctl", "set", NAME, "--onboot", "no")


@step
def delete() -> None:
    """Nothing is left."""
    name = uuid()
    run("prlctl", "delete", NAME)
    need(NAME not in run("prlctl", "list", "-a", "-H", "-o", "name"), "it is still listed")
    places = ("/vz/private", "/vz/root", "/etc/vz/conf", "/etc/vz/names")
    left = [entry for place in places for entry in Path(place).glob("*") if name in entry.name]
    need(not left, f"left in {left}")
    need(name not in Path("/proc/self/mountinfo").read_text(), "mounts are left")


@step
def uninstall() -> None:
    """What bootstrap put on the machine goes away again."""
    run("systemctl", "stop", "pyvz-vzd.service", "pyvz-vzd.socket", code=None)
    run(SOURCES / "script/bootstrap", "--uninstall")
    need(shutil.which("prlctl") is None, "prlctl is still there")


def diagnosis() -> None:
    """The last words of the logs, when a step failed."""
    for log in sorted(Path("/var/log/pyvz").glob("*")):
        print(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}")
    run("journalctl", "-b", "-n", "40", "--no-pager", code=None)
    run("cat", "/proc/self/cgroup", code=None)
    run("find", "/sys/fs/cgroup", "-maxdepth", "4", "-path", "*vz*", "-type", "d", code=None)


def perform(function: Callable[[], None]) -> dict[str, object]:
    """Run one step; what it prints goes into its line."""
    started = time.monotonic()
    transcript = Path("/run/transcript")
    with transcript.open("w+") as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            function()
            ok = True
        except Exception:  # noqa: BLE001  whatever it is, it is this step's answer
            ok = False
            traceback.print_exc(file=sys.stdout, limit=-3)
            sys.stdout.flush()
            diagnosis()
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
    text = transcript.read_text(errors="replace")
    took = round(time.monotonic() - started, 1)
    return {"step": function.__name__, "ok": ok, "seconds": took, "text": text}


# For each kind of machine its steps.
KINDS = {"cgroups": STEPS, "hardware": [bootstrap, *guesthardware.STEPS]}


def main() -> None:
    """All steps, or those that the payload names (PYVZ_MACHINE_STEPS)."""
    chosen = (PAYLOAD / "steps").read_text().split()
    with REPORT.open("w") as port:
        for function in KINDS[(PAYLOAD / "kind").read_text()]:
            if chosen and function.__name__ not in chosen:
                continue
            print(f"machine-test: {function.__name__}", flush=True)
            answer = perform(function)
            print(f"machine-test: {function.__name__}: {answer['ok']}", flush=True)
            port.write(json.dumps(answer) + "\n")
            port.flush()
        port.write(json.dumps({"step": "end"}) + "\n")


if __name__ == "__main__":
    main()
