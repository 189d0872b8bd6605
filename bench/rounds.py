"""script/bench rounds: the CPU time of one round of the memory manager over very many VEs.

    script/bench rounds [--groups N] [--rounds N]

Makes N control groups (with a process in each hundredth), and lets each policy do its rounds over
them as vzd does.  Beside it stands what the kernel alone takes to show one file of each group.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

from pyvz.linux import cgroup
from pyvz.linux.cgroup import Cgroups
from pyvz.linux.cgroup_memory import node_memory
from pyvz.memory.balance import Balancer, Placed, Round
from pyvz.memory.managed import Group
from pyvz.memory.policy import base as policies
from pyvz.model.memory import Reservation, VeType
from pyvz.units import MIB

PARENT = "pyvz-bench-rounds.slice"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench rounds",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    return parser.parse_args()


def cpu_ms(work: Callable[[], object], runs: int) -> float:
    """The median CPU time (user and system) of one run, in milliseconds."""
    times = []
    for _ in range(runs):
        begun = time.process_time()
        work()
        times.append((time.process_time() - begun) * 1e3)
    return statistics.median(times)


def bare(groups: Cgroups, names: list[str]) -> None:
    """Open, read and close one file of each group: what nobody can do without."""
    for name in names:
        path = groups.memory.path(name)
        fd = os.open(f"{path}/memory.stat", os.O_RDONLY)
        os.read(fd, 8192)
        os.close(fd)


def measure(groups: Cgroups, names: list[str], rounds: int) -> None:
    """Print a line for the bare reads and one for each policy."""
    memory = groups.memory
    base = cpu_ms(lambda: bare(groups, names), rounds)
    print(f"{'bare reads of memory.stat':<28} {base:8.1f} ms")
    entries = [
        Reservation(name, VeType.CT, active=True, guarantee=MIB, auto=False, limit=512 * MIB)
        for name in names
    ]
    for policy in policies.names():

        def place(_: Placed) -> None:
            raise AssertionError("nothing is placed on one NUMA node")

        balancer = Balancer(
            policies.load(policy), lambda entry: Group(memory, memory.path(entry.name)), place
        )

        def once(balancer: Balancer = balancer) -> None:
            balancer.round(Round(node_memory(memory, 0), entries))

        first = cpu_ms(once, 1)
        time.sleep(0.2)
        each = cpu_ms(once, rounds)
        print(
            f"{policy:<28} {each:8.1f} ms ({each / base:.1f} times the bare reads; "
            f"first round {first:.1f} ms)"
        )


def main() -> int:
    """Make the groups, measure, take them away."""
    options = arguments()
    groups = cgroup.detect(PARENT)
    names = [str(uuid.uuid4()) for _ in range(options.groups)]
    sleepers = []
    try:
        for number, name in enumerate(names):
            groups.create(name)
            if number % 100 == 0:
                sleeper = subprocess.Popen(["sleep", "3600"], stdin=subprocess.DEVNULL)
                sleepers.append(sleeper)
                with open(f"{groups.memory.path(name)}/cgroup.procs", "w") as file:
                    file.write(str(sleeper.pid))
        print(f"{options.groups} groups, CPU time of one round, median of {options.rounds}")
        measure(groups, names, options.rounds)
    finally:
        groups.memory.close()
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
        for name in names:
            groups.remove(name)
        groups.remove_parent()
    return 0


if __name__ == "__main__":
    sys.exit(main())
