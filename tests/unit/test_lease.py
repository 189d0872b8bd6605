"""Leases exclude threads and processes, name their holder and die with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest

from pyvz.errors import InternalError, Locked
from pyvz.store.lease import Lease, holder
from pyvz.store.paths import Paths

UUID = "6f1d7a52-51d4-4f0b-9c5e-9d0c1f2a7b10"
SPAWN = multiprocessing.get_context("spawn")


def hold(paths: Paths, pipe: Connection) -> None:
    """Hold the lease until something arrives (in another process)."""
    with Lease.take(paths, UUID, "migrating"):
        pipe.send("taken")
        pipe.recv()


@pytest.fixture
def other(paths: Paths):
    """Yield (process that holds the lease, pipe to it)."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(paths, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60)
    assert ours.recv() == "taken"
    yield process, ours
    process.kill()
    process.join(60)
    ours.close()


def test_taking_and_releasing(paths: Paths) -> None:
    with Lease.take(paths, UUID, "starting") as lease:
        assert lease.held
        assert lease.path == paths.lock / f"{UUID}.lck"
        assert lease.path.read_text() == f"{os.getpid()}\nstarting\n"
        found = holder(paths, UUID)
        assert found is not None
        assert (found.pid, found.action) == (os.getpid(), "starting")
        assert time.time() - found.since < 60
        lease.note("mounting")
        assert lease.path.read_text() == f"{os.getpid()}\nmounting\n"
    assert not lease.held
    lease.release()
    assert not lease.path.exists()
    assert holder(paths, UUID) is None


def test_two_environments_do_not_wait_for_each_other(paths: Paths) -> None:
    with Lease.take(paths, UUID, "starting"), Lease.take(paths, UUID[:-1] + "1", "starting"):
        pass


def test_twice_by_one_thread_is_a_defect(paths: Paths) -> None:
    with Lease.take(paths, UUID, "starting"):
        with pytest.raises(InternalError, match=r"twice.*starting.*stopping"):
            Lease.take(paths, UUID, "stopping", timeout=5)
        assert holder(paths, UUID) is not None


def test_released_when_the_block_fails(paths: Paths) -> None:
    with pytest.raises(ZeroDivisionError), Lease.take(paths, UUID, "starting"):
        _ = 1 / 0
    Lease.take(paths, UUID, "starting").release()


def in_thread(call) -> list[object]:
    results: list[object] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001  (handed to the test)
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(200)
    return results


def test_another_thread_is_told_who_and_waits_when_asked(paths: Paths) -> None:
    lease = Lease.take(paths, UUID, "stopping")
    (error,) = in_thread(lambda: Lease.take(paths, UUID, "starting"))
    assert isinstance(error, Locked)
    assert f"stopping by process {os.getpid()} for" in error.message
    threading.Timer(0.2, lease.release).start()
    (taken,) = in_thread(lambda: Lease.take(paths, UUID, "starting", timeout=60))
    assert isinstance(taken, Lease)
    taken.release()


def test_another_process_is_named(paths: Paths, other) -> None:
    process, _pipe = other
    begin = time.monotonic()
    with pytest.raises(Locked, match=f"migrating by process {process.pid}"):
        Lease.take(paths, UUID, "starting", timeout=0.1)
    assert 0.1 <= time.monotonic() - begin < 30
    found = holder(paths, UUID)
    assert found is not None
    assert found.pid == process.pid


def test_a_lease_ends_orderly_in_another_process(paths: Paths, other) -> None:
    _process, pipe = other
    pipe.send("done")
    with Lease.take(paths, UUID, "starting", timeout=60):
        pass


def test_a_lease_dies_with_its_holder(paths: Paths, other) -> None:
    process, _pipe = other
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert (paths.lock / f"{UUID}.lck").exists()
    assert holder(paths, UUID) is None
    with Lease.take(paths, UUID, "starting") as lease:
        assert lease.path.read_text().startswith(f"{os.getpid()}\n")


def test_many_threads_one_at_a_time(paths: Paths) -> None:
    inside, worst, failures = [0], [0], []

    def work() -> None:
        for _ in range(20):
            try:
                with Lease.take(paths, UUID, "working", timeout=120):
                    inside[0] += 1
                    worst[0] = max(worst[0], inside[0])
                    time.sleep(0)
                    inside[0] -= 1
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert failures == []
    assert worst == [1]


def test_lock_directory_of_vz_conf(paths: Paths) -> None:
    paths.etc.mkdir(parents=True)
    paths.vz_conf.write_text('LOCKDIR="/var/lock/vz"\n')
    with Lease.take(paths, UUID, "starting") as lease:
        assert lease.path.parent == paths.root / "var/lock/vz"


def test_an_error_elsewhere_in_vz_conf_does_not_move_the_locks(paths: Paths) -> None:
    paths.etc.mkdir(parents=True)
    paths.vz_conf.write_text('LOCKDIR="/var/lock/vz"\nIPV6="perhaps"\n')
    with Lease.take(paths, UUID, "starting") as lease:
        assert lease.path.parent == paths.root / "var/lock/vz"
