"""A Debian guest that serves: PostgreSQL and nginx, and clients that would see any loss.

    client <p>c --- pgbench, 4 connections ------------> PostgreSQL   TPC-B like transactions
                --- 4 keep-alive HTTP connections -----> nginx        a request every few ms

Both clients hold their connections for the whole test and never connect again, so that a reset, a
lost answer or a failed transaction is an error at once; standing still is not.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from images import debian_of
from twonodes import Side, TwoNodes, lan_card, wait_for

RELEASES = {12: "15", 13: "17"}  # of Debian: of its PostgreSQL
PATIENCE = 180.0  # seconds until systemd and the servers are up, on a loaded machine
PROFILE = """\
set -e
cd /etc/postgresql/{version}/main
echo "listen_addresses = '*'" >> postgresql.conf
echo "host all all {network} trust" >> pg_hba.conf
cat > /etc/nginx/conf.d/patient.conf <<END
keepalive_requests 1000000000;
keepalive_timeout 1h;
keepalive_time 24h;
END
sed -i /keepalive_timeout/d /etc/nginx/nginx.conf
echo served > /var/www/html/index.html
systemctl restart postgresql@{version}-main nginx
"""
QUERY = (
    "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from"
    " pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select sum(delta) from"
    " pgbench_history), (select count(*) from pgbench_history)"
)
_BROWSER = r"""
import http.client, json, signal, sys, threading, time
address, count = sys.argv[1], int(sys.argv[2])
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
requests, failed, longest = [0] * count, [], [0.0] * count

def browse(number):
    try:
        link = http.client.HTTPConnection(address, timeout=900)
        link.connect()
        link.auto_open = False
        while not ended.is_set():
            began = time.monotonic()
            link.request("GET", "/")
            answer = link.getresponse()
            body = answer.read()
            if answer.status != 200 or body != b"served\n":
                raise ValueError(f"{answer.status} {body[:100]!r}")
            if answer.will_close:
                raise ValueError("the server closes the connection")
            longest[number] = max(longest[number], time.monotonic() - began)
            requests[number] += 1
            time.sleep(0.005)
    except Exception as error:
        failed.append(repr(error))

threads = [threading.Thread(target=browse, args=(number,)) for number in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"requests": sum(requests), "failed": failed, "longest": max(longest)}))
"""


class Browsed(NamedTuple):
    """What came of the HTTP requests."""

    requests: int
    failed: list[str]
    longest: float  # seconds of the slowest


class Serving:
    """The guest; `side` is where it is."""

    def __init__(self, side: Side, release: int, address: str) -> None:
        self.side, self.release, self.address = side, release, address
        self.name = f"debian{release}"
        self.uuid = ""

    @property
    def world(self) -> TwoNodes:
        return self.side.world

    def create(self, layout: str = "simfs", *options: str) -> None:
        """Make it, start it, configure its servers and fill its database."""
        side = self.side
        template = f"debian-{self.release}-x86_64"
        cache = side.root / f"vz/template/cache/{template}.plain.tar.zst"
        shutil.copy(debian_of(self.release, "postgresql", "nginx"), cache)
        side.cli("vzctl", "create", self.name, "--ostemplate", template, "--layout", layout)
        cache.unlink()
        side.prlctl("set", self.name, *lan_card(self.address), *options)
        side.prlctl("start", self.name)
        self.uuid = str(side.rows(self.name)[0]["uuid"])
        self.ready()
        network = f"{self.address.rpartition('.')[0]}.0/24"
        version = RELEASES[self.release]
        self.inside(PROFILE.format(version=version, network=network))
        self.postgres("createdb bench")
        self.postgres("pgbench -i -q -s 2 bench")

    def migrate(self, there: Side) -> dict[str, object]:
        """Have it go to the other node while it runs; returns what vzmigrate tells at its end."""
        side = self.side
        with side.popen(
            "vzmigrate", f"--ssh=-F {side.world.ssh_config}", "--online", "--json", there.name,
            self.name,
        ) as process:  # fmt: skip
            out, _ = process.communicate(timeout=PATIENCE * 10)
        assert process.returncode == 0, out[-2000:]
        result: dict[str, object] = json.loads(out.splitlines()[-1])["result"]
        return result

    def inside(self, command: str, code: int | None = 0) -> str:
        """Run a shell command inside."""
        return self.side.prlctl("exec", self.name, command, code=code)

    def postgres(self, command: str) -> str:
        """Run a shell command inside as the user postgres."""
        return self.inside(f"su postgres -c {shlex.quote('cd /; ' + command)}")

    def ready(self) -> None:
        """Wait until systemd says that everything runs."""

        def up() -> bool:
            return self.inside("systemctl is-system-running", code=None).strip() == "running"

        wait_for(up, PATIENCE)

    def sums(self) -> list[int]:
        """Return the sums of the tables, and how many transactions there were."""
        said = self.postgres(f'psql -At -F " " -c "{QUERY}" bench')
        return [int(word or 0) for word in said.split(" ")]

    def whole(self) -> int:
        """Check that the books balance; return how many transactions there were."""
        *sums, count = self.sums()
        assert len(set(sums)) == 1, f"the tables of pgbench differ: {sums}"
        return count

    def healthy(self) -> None:
        """Check that systemd, its journal and its services work, not only go on."""
        self.ready()
        for unit in ("nginx", f"postgresql@{RELEASES[self.release]}-main", "systemd-journald"):
            assert self.inside(f"systemctl is-active {unit}").strip() == "active"
        self.inside("systemd-run --wait --quiet /bin/true")
        self.inside("systemctl reload nginx")
        self.inside(
            "logger --tag checked seen; journalctl --sync; journalctl -t checked | grep seen"
        )
        self.postgres("psql -qc checkpoint bench")


class Load:
    """pgbench and the browser at the client, for a block of work; `check` at its end."""

    def __init__(self, serving: Serving, scratch: Path) -> None:
        self._serving = serving
        self._log = scratch / f"pgbench-{serving.name}"
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Load:
        address = self._serving.address
        # fmt: off
        self._bench = self._start(
            "pgbench", "-h", address, "-U", "postgres", "-n", "-c", "4", "-j", "2", "-P", "5",
            "--rate", "60", "-T", "86400", "bench", log=self._log)
        self._browser = self._start(sys.executable, "-c", _BROWSER, address, "4")
        # fmt: on
        return self

    def _start(self, *argv: str, log: Path | None = None) -> subprocess.Popen[str]:
        where = f"--net=/run/netns/{self._serving.world.client}"
        process = subprocess.Popen(
            ["nsenter", where, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log.open("w") if log else subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            with contextlib.suppress(ValueError):  # it has ended, and told why
                process.communicate()

    def goes_on(self) -> None:
        """Raise when a client has given up."""
        for process in self._processes:
            assert process.poll() is None, process.communicate()[0] + self._log.read_text()[-2000:]

    def transactions(self) -> float:
        """Return how far pgbench has come, by its last report of progress (seconds)."""
        found = re.findall(r"^progress: ([\d.]+) s", self._log.read_text(), re.MULTILINE)
        return float(found[-1]) if found else 0.0

    def flows(self) -> None:
        """Wait until transactions were done after this moment."""
        before = self.transactions()

        def more() -> bool:
            self.goes_on()
            return self.transactions() > before

        wait_for(more, PATIENCE)

    def end(self) -> tuple[int, Browsed]:
        """Let both come to their end; return the number of transactions, and what was browsed.

        SIGALRM is how pgbench ends its time: every client finishes its transaction.
        """
        self.goes_on()
        self._bench.send_signal(signal.SIGALRM)
        self._browser.send_signal(signal.SIGTERM)
        said, _ = self._bench.communicate(timeout=PATIENCE)
        browsed, _ = self._browser.communicate(timeout=PATIENCE)
        failed = re.search(r"number of failed transactions: (\d+)", said)
        done = re.search(r"number of transactions actually processed: (\d+)", said)
        assert self._bench.returncode == 0, said + self._log.read_text()[-3000:]
        assert done is not None, said
        assert failed is not None, said
        assert failed[1] == "0", said
        return int(done[1]), Browsed(**json.loads(browsed))
