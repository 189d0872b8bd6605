"""Steps of the machine test: suspend on cgroup v2, and a migration with rounds of memory.

Node a is the machine's own, node b a root of its own below /b; a sshd leads to each.
Both are on the same kernel, which tracks the pages that are written to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from guesttools import NAME, SLOW, ct, need, run, running, status, until

OTHER = Path("/b")
KEYS = OTHER / "ssh"
PORTS = {"a": 2221, "b": 2222}
HELD = 96 << 20  # bytes of a process that does not touch them again
HOLD = (
    f"systemd-run -q --unit=hold sh -c 'head -c {HELD} /dev/urandom > /var/tmp/held;"
    " md5sum < /var/tmp/held > /root/want; mkfifo /root/go;"
    f" (cat /var/tmp/held; rm /var/tmp/held; touch /root/ready; read x < /root/go) | tail -c {HELD}"
    " | md5sum > /root/sum'"
)
BORN = "systemctl show count -p MainPID,InvocationID,ExecMainStartTimestampMonotonic"
COUNT = (
    "systemd-run -q --unit=count sh -c 'i=0; while :; do i=$((i + 1)); echo $i > /root/new;"
    " mv /root/new /root/counter; sleep 0.1; done'"
)
SSHD = """\
ListenAddress 127.0.0.1:{port}
HostKey {keys}/host
PidFile none
UsePAM no
AuthorizedKeysFile {keys}/key.pub
StrictModes no
PasswordAuthentication no
SetEnv {environment}
"""
SSH = """\
Host {name}
HostName 127.0.0.1
Port {port}
User root
IdentityFile {keys}/key
UserKnownHostsFile {keys}/known
StrictHostKeyChecking yes
"""


def counter() -> int:
    """What the container has counted to."""
    return int(ct("cat", "/root/counter").split()[-1])


def at_other(*argv: str, code: int | None = 0, timeout: float = SLOW) -> str:
    """Run a command line of ours at node b."""
    return run("env", f"PYVZ_ROOT={OTHER}", *argv, code=code, timeout=timeout)


def suspend_and_resume() -> None:
    """On cgroup v2 systemd inside comes back from disk as it was, also after vzd was restarted."""
    running()
    run("prlctl", "set", NAME, "--memsize", "512M")
    ct(COUNT)
    until(lambda: "No such" not in ct("cat", "/root/counter", code=None), "it counts")
    seen = counter()
    born = ct(BORN)
    print(run("prlsrvctl", "info"))
    run("prlctl", "suspend", NAME)
    need(status() == "suspended", "it is not suspended")
    run("systemctl", "restart", "pyvz-vzd.service")
    run("prlctl", "resume", NAME)
    need(status() == "running", "it does not run")
    need(ct("systemctl", "is-system-running").strip() == "running", "systemd inside is not well")
    need(ct(BORN) == born, "its program was started anew")
    until(lambda: counter() > seen, "it counts on")
    ct("systemd-run", "--wait", "--quiet", "/bin/true")
    run("prlctl", "suspend", NAME)
    run("prlctl", "resume", NAME)
    ct("systemctl", "stop", "count")


def precopy() -> None:
    """Memory goes in rounds while it runs; what stands still is the little that changed last."""
    running()
    ct("systemctl", "stop", "count", code=None)  # of a step before that has failed
    run("prlctl", "set", NAME, "--memsize", "512M")
    other_node()
    ct(HOLD)
    until(lambda: "ready" in ct("ls", "/root"), "the program holds its memory")
    ct(COUNT)
    until(lambda: "counter" in ct("ls", "/root"), "it counts")
    seen = counter()
    rounds = moved(run, "b")
    need(rounds[0] * 4096 > HELD, f"not all of the memory went in the first round: {rounds}")
    need("running" in at_other("prlctl", "status", NAME), "it does not run there")
    run("prlctl", "status", NAME, code=255)
    need(counter_there() >= seen, "its files are older than before")
    moved(at_other, "a")
    need(status() == "running", "it does not run here again")
    whole(seen)


def moved(at: Callable[..., str], target: str) -> list[int]:
    """Have it go to the other node while it runs; returns the pages of the rounds."""
    argv = ("vzmigrate", f"--ssh=-F {KEYS}/config", "--online", "--json", target, NAME)
    said = at(*argv, timeout=1200.0)
    result = json.loads(said.splitlines()[-1])["result"]
    rounds: list[int] = result["memory_rounds"]
    need(result["precopy"] == "", f"no rounds: {result['precopy']}")
    need(len(rounds) > 1, f"one round: {rounds}")
    need(rounds[1] < rounds[0] / 2, f"the second round is no smaller: {rounds}")
    return rounds


def counter_there() -> int:
    """What it has counted to at node b."""
    return int(at_other("prlctl", "exec", NAME, "cat", "/root/counter").split()[-1])


def whole(seen: int) -> None:
    """Check that all of it has come along: memory of every round, files, and that it goes on."""
    until(lambda: counter() > seen, "it counts on")
    ct("echo > /root/go")
    until(lambda: "-" in ct("cat", "/root/sum", code=None), "the program has its sum")
    need(ct("cat", "/root/sum") == ct("cat", "/root/want"), "its memory is another")
    need(ct("systemctl", "is-system-running").strip() == "running", "systemd is not well")
    need(ct("systemctl", "is-active", "count").strip() == "active", "the unit has ended")
    ct("systemctl", "stop", "count")


def other_node() -> None:
    """Make node b, a sshd for each node, and the key with which they come to each other."""
    KEYS.mkdir(parents=True)
    (OTHER / "etc/vz").mkdir(parents=True)
    (OTHER / "etc/vz/vz.conf").write_text('SKIP_ARPDETECT="yes"\n')
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEYS / name)
    words = (KEYS / "host.pub").read_text().split()
    known, config = "", ""
    for name, port in PORTS.items():
        environment = f"PATH={os.environ['PATH']}" + (f" PYVZ_ROOT={OTHER}" if name == "b" else "")
        made = SSHD.format(port=port, keys=KEYS, environment=environment)
        (KEYS / f"sshd_{name}").write_text(made)
        known += f"[127.0.0.1]:{port} {words[0]} {words[1]}\n"
        config += SSH.format(name=name, port=port, keys=KEYS)
        run("/usr/sbin/sshd", "-f", KEYS / f"sshd_{name}")
    (KEYS / "known").write_text(known)
    (KEYS / "config").write_text(config)
    # A second vzd, which the client waits for half a minute: emulated, it may need longer.
    until(lambda: "UUID" in at_other("prlctl", "list", "-a", code=None), "node b serves")
