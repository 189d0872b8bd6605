"""script/bench: the same operations on pyvz and its peers, side by side in one run.

Medians in milliseconds (memory: KiB), and in brackets ours divided by the peer's: below 1 we are
faster, or smaller.  Peers that are not installed are left out; only what was seen is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.incus import Incus
from bench.measure import OPERATIONS, Figure, Plan, Results, measure, say
from bench.ours import TEMPLATE, Pyvz
from bench.peer import Missing, Peer, Place
from bench.peers import Lxc, Nspawn, Runc

PEERS: tuple[type[Peer], ...] = (Pyvz, Runc, Nspawn, Lxc, Incus)
STORE = Path("/var/cache/pyvz-bench")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="of cheap operations")
    parser.add_argument("--peers", default=names, metavar="A,B", help=f"of {names}")
    parser.add_argument(
        "--operations", default=",".join(OPERATIONS), metavar="A,B", help=",".join(OPERATIONS)
    )
    parser.add_argument("--lists", default="1,50,200", metavar="N,N", help="lengths of lists")
    parser.add_argument("--many", type=int, default=5, metavar="N", help="containers for memory")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every run to FILE")
    parser.add_argument("--image", metavar="TAR", help="a root folder of Debian with systemd")
    parser.add_argument(
        "--install-peers", action="store_true", help="install the peers' Debian packages first"
    )
    found = parser.parse_args()
    unknown = set(found.operations.split(",")) - set(OPERATIONS)
    unknown |= set(found.peers.split(",")) - {peer.name for peer in PEERS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return found


def run(*argv: str) -> None:
    """Run a program; what it says goes to standard error."""
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def find_image() -> Path:
    """Our own template cache: of the machine's node, else of one that is kept for the bench."""
    for root in (Path("/"), STORE):
        found = sorted((root / "vz/template/cache").glob(f"{TEMPLATE}*.tar.zst"))
        if found:
            return found[-1]
    say(f"building a template cache of {TEMPLATE} in {STORE}")
    STORE.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYVZ_ROOT": str(STORE)}
    create = ["vzpkg", "create", "cache", TEMPLATE]
    try:
        subprocess.run(create, check=True, stdin=subprocess.DEVNULL, env=environment)
    finally:
        stop = ["prlsrvctl", "shutdown", "--force"]
        subprocess.run(stop, check=False, stdin=subprocess.DEVNULL, env=environment)
    return sorted((STORE / "vz/template/cache").glob(f"{TEMPLATE}*.tar.zst"))[-1]


def make_place(work: Path, image: Path) -> Place:
    """The two images as plain tars."""
    work.chmod(0o711)  # the root of an unprivileged container must get through
    plain = work / "image.tar"
    if image.suffix == ".zst":
        run("zstd", "-q", "-d", str(image), "-o", str(plain))
    else:
        shutil.copyfile(image, plain)
    init = work / "tiny/sbin/init"
    init.parent.mkdir(parents=True)
    init.write_text("#!/bin/sh\n")
    init.chmod(0o755)
    (work / "tiny/etc").mkdir()
    run("tar", "-C", str(work / "tiny"), "--numeric-owner", "-cf", str(work / "tiny.tar"), ".")
    return Place(work, plain, work / "tiny.tar")


def install(kinds: list[type[Peer]]) -> None:
    """The peers' packages; a suite beside the node's own is added with a low priority."""
    for kind in kinds:
        try:
            for package in kind.packages:
                install_package(package, kind.suite)
        except subprocess.CalledProcessError as error:
            say(f"{kind.name} cannot be installed: {error}")


def install_package(package: str, suite: str) -> None:
    """One package, from SUITE where the node's own suite does not have it."""
    if subprocess.run(["dpkg", "-s", package], check=False, capture_output=True).returncode == 0:
        return
    known = ["apt-cache", "show", package]
    if suite and subprocess.run(known, check=False, capture_output=True).returncode != 0:
        # The mirror is the one that the node's apt has for Debian itself.
        listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian"]
        told = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
        mirror = next(uri for uri in told.split() if "security" not in uri)
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        line = f"deb [signed-by={keyring}] {mirror} {suite} main\n"
        Path("/etc/apt/sources.list.d/pyvz-bench.list").write_text(line)
        pin = f"Package: *\nPin: release n={suite}\nPin-Priority: 50\n"
        Path("/etc/apt/preferences.d/pyvz-bench").write_text(pin)
        run("apt-get", "update")
    target = ["-t", suite] if suite else []
    options = ["-qq", "-o", "DPkg::Lock::Timeout=600", "-y", "--no-install-recommends"]
    run("apt-get", *options, "install", *target, package)


def ready(kinds: list[type[Peer]], place: Place) -> list[Peer]:
    """The peers that could be set up, ours first."""
    peers = []
    for kind in kinds:
        peer = kind(place)
        try:
            peer.setup()
        except Missing as error:
            say(f"{kind.name} is left out: {error}")
            peer.clean()
        else:
            peers.append(peer)
    return peers


def cell(ours: Figure, theirs: Figure) -> str:
    """A median and our ratio to it."""
    median, own = theirs.median, ours.median
    if median is None:
        return "n/a" if theirs.why in ("", "n/a") else "failed"
    text = f"{median:.1f}"
    if ours is not theirs and own is not None and median > 0:
        text += f" ({own / median:.2f})"
    return text


def table(results: Results, peers: list[Peer]) -> str:
    """One row for each operation, one column for each peer."""
    names = [peer.name for peer in peers]
    rows = [["operation", *names]]
    for operation in dict.fromkeys(name for name, _ in results):
        ours = results.get((operation, "pyvz"), Figure())
        cells = [cell(ours, ours if n == "pyvz" else results.get((operation, n), Figure()))
                 for n in names]  # fmt: skip
        rows.append([operation, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def save(path: str, results: Results) -> None:
    """Every number that was seen."""
    rows = [
        {"operation": operation, "peer": peer, "values": figure.values, "why": figure.why}
        for (operation, peer), figure in results.items()
    ]
    Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def main() -> int:
    """Set up, measure, print, clean."""
    options = arguments()
    if os.geteuid() != 0:
        say("must be run as root")
        return 1
    kinds = [kind for kind in PEERS if kind.name in options.peers.split(",")]
    if options.install_peers:
        install(kinds)
    image = Path(options.image) if options.image else find_image()
    work = Path(tempfile.mkdtemp(prefix="pvb.", dir="/var/tmp"))
    peers: list[Peer] = []
    try:
        peers = ready(kinds, make_place(work, image))
        lists = tuple(int(word) for word in options.lists.split(","))
        plan = Plan(options.runs, lists, options.many)
        results = measure(peers, plan, options.operations.split(","))
        print(table(results, peers))
        if options.json:
            save(options.json, results)
    finally:
        for peer in peers:
            peer.clean()
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
