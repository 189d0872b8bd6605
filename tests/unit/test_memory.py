"""What is promised, what the policies decide, what a round does: all without a kernel."""

from __future__ import annotations

import logging

import pytest

from pyvz.errors import BadValue, GuaranteeRefused, InternalError, PolicyNotFound
from pyvz.memory import guarantee
from pyvz.memory.balance import Balancer, Placed, Round
from pyvz.memory.policy import base, pressure
from pyvz.memory.policy.base import NumaNode, Plan, Ve, View
from pyvz.memory.policy.placement import Placement
from pyvz.model.config import Config
from pyvz.model.memory import NodeMemory, Protection, Reservation, Sample, VeType
from pyvz.model.vcmmdconf import VcmmdConf
from pyvz.store.memorybook import MemoryBook
from pyvz.store.paths import Paths
from pyvz.units import GIB, MIB, UNLIMITED

NODE = NodeMemory(total=2 * GIB, usable=GIB, free=GIB // 2)
NOOP = base.load("noop")
PERFORMANCE = base.load("performance")


def entry(name: str, size: int = 0, limit: int = GIB, **more: object) -> Reservation:
    return Reservation(
        name, VeType.CT, active=True, guarantee=size, auto=False, limit=limit
    )._replace(**more)


def config(**values: str) -> Config:
    return Config.parse(values)


# -- guarantees -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "promised"),
    [
        ({"PHYSPAGES": "65536:65536", "MEMGUARANTEE": "50"}, 128 * MIB),
        ({"PHYSPAGES": "65536:65536", "MEMGUARANTEE": "auto"}, 0),
        ({"PHYSPAGES": "65536:65536"}, 0),
        ({"PHYSPAGES": "65536:65536", "MEMGUARANTEE_BYTES": str(64 * MIB)}, 64 * MIB),
        ({"MEMGUARANTEE": "50"}, GIB // 2),  # of what the node has, where there is no limit
        ({"PRIVVMPAGES": "65536:70000", "MEMGUARANTEE": "100"}, 256 * MIB),  # beancounters only
    ],
)
def test_what_a_configuration_asks_for(values: dict[str, str], promised: int) -> None:
    found = guarantee.of_config("x", VeType.CT, config(**values), NODE)
    assert guarantee.settled(found, NOOP, NODE).guarantee == promised


def test_a_guarantee_above_the_limit_is_nonsense() -> None:
    values = {"PHYSPAGES": "1024:1024", "MEMGUARANTEE_BYTES": str(5 * MIB)}
    with pytest.raises(BadValue, match="5 MiB is above the limit of 4 MiB"):
        guarantee.of_config("x", VeType.CT, config(**values), NODE)
    with pytest.raises(BadValue, match="negative"):
        guarantee.check(entry("x", -1))


@pytest.mark.parametrize(
    ("policy", "kind", "share"),
    [
        ("noop", VeType.VM, 40),
        ("density", VeType.VM, 40),
        ("performance", VeType.VM_LIN, 80),
        ("pressure", VeType.VM_WIN, 40),
        ("performance", VeType.CT, 0),
        ("density", VeType.SRVC, 0),
    ],
)
def test_what_auto_means(policy: str, kind: VeType, share: int) -> None:
    asked = Reservation("x", kind, limit=100 * MIB)
    assert guarantee.settled(asked, base.load(policy), NODE).guarantee == share * MIB


def test_the_sum_must_fit() -> None:
    others = [entry("a", 600 * MIB), entry("b", 0, overhead=100 * MIB)]
    guarantee.admit(entry("c", 324 * MIB), others, NODE, NOOP)
    guarantee.admit(entry("a", 924 * MIB), others, NODE, NOOP)  # its own counts once
    with pytest.raises(GuaranteeRefused) as refused:
        guarantee.admit(entry("c", 325 * MIB), others, NODE, NOOP, label="web")
    assert str(refused.value) == (
        "web wants a guarantee of 325 MiB, but the node can promise only 324 MiB more"
    )
    assert "promised to 2 others: 700 MiB" in refused.value.details
    assert "memory of the node: 2048 MiB, kept for the node itself: 1024 MiB" in (
        refused.value.details
    )


def test_performance_allows_no_overcommitment() -> None:
    others = [entry("a", limit=600 * MIB), entry("s", limit=UNLIMITED, type=VeType.SRVC)]
    guarantee.admit(entry("b", limit=424 * MIB), others, NODE, PERFORMANCE)
    with pytest.raises(GuaranteeRefused, match="only 424 MiB are left"):
        guarantee.admit(entry("b", limit=425 * MIB), others, NODE, PERFORMANCE)
    with pytest.raises(GuaranteeRefused, match="any amount of memory"):
        guarantee.admit(entry("b", limit=UNLIMITED), (), NODE, PERFORMANCE)


# -- the file and the book --------------------------------------------------------------------


def test_vcmmd_conf_of_both_generations() -> None:
    conf = VcmmdConf.parse('{"LoadManager": {"Policy": "performance"}, "Other": [1]}')
    assert conf.policy == "performance"
    assert conf.reserved(24 * GIB) == (512 + 512 + 128) * MIB
    assert conf.reserved(GIB) == (320 + 320 + 32) * MIB
    changed = VcmmdConf.parse(conf.with_policy("pressure").render())
    assert (changed.policy, changed.data["Other"]) == ("pressure", [1])
    host = VcmmdConf.parse('{"Host": {"HostMem": {"Share": 0.5, "Min": 0, "Max": 1e12}}}')
    assert host.share("HostMem").of(GIB) == GIB // 2
    assert VcmmdConf.parse('{"LoadManager": {"Policy": "NoOpPolicy"}}').policy == "noop"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"LoadManager": 7}',
        '{"LoadManager": {"Policy": 7}}',
        '{"Host": {"SysMem": {"Share": 2, "Min": "x", "Max": -1}}}',
        '{"Host": {"SysMem": {"Share": NaN}}}',
        "[" * 5000,
    ],
)
def test_a_damaged_vcmmd_conf_counts_as_empty(text: str) -> None:
    conf = VcmmdConf.parse(text)
    assert conf.policy == "noop"
    assert conf.reserved(24 * GIB) == (512 + 512 + 128) * MIB
    assert conf.problems or text.startswith('{"LoadManager": 7')
    assert VcmmdConf.parse(conf.with_policy("density").render()).policy == "density"


def test_the_book_outlives_its_reader(tmp_path) -> None:
    paths = Paths(tmp_path)
    one = MemoryBook(paths)
    service = entry("system.slice/x.service", 5, type=VeType.SRVC)
    with one.locked():
        one.put(entry("a", 7))
        one.put(service)
    two = MemoryBook(paths)
    assert two.entries() == {"a": entry("a", 7), service.name: service}
    two.drop("a")
    two.drop("a")
    assert list(one.entries()) == [service.name]
    for name in ("", "../a", "a//b", "a\nb", "x" * 201, "."):
        with pytest.raises(BadValue):
            one.put(entry(name))
    (tmp_path / "run/pyvz/memory/ves/b.json").write_text('{"name": 5}')
    assert list(MemoryBook(paths).entries()) == [service.name]
    one.set_policy("density")
    assert two.policy == "density"


def test_policies_are_found_by_name() -> None:
    assert base.names() == ("density", "noop", "performance", "pressure")
    for name in base.names():
        assert base.load(name).name == name
    assert base.load("NoOpPolicy").name == "noop"
    for name in ("fastest", "base", "placement", "../noop", "", "noop "):
        with pytest.raises(PolicyNotFound, match="there is no memory policy"):
            base.load(name)


# -- rounds -----------------------------------------------------------------------------------


class Fake:
    """A VE that does what it is told."""

    def __init__(self, used: int = 100 * MIB) -> None:
        self.now: Sample | None = Sample(used)
        self.written: list[tuple[int, Protection]] = []
        self.broken = False

    def sample(self) -> Sample | None:
        if self.broken:
            raise FileNotFoundError
        return self.now

    def protect(self, size: int, wanted: Protection) -> None:
        if self.broken:
            raise FileNotFoundError
        self.written.append((size, wanted))

    def take(self, amount: int) -> int:
        assert self.now is not None
        self.now = self.now._replace(used=self.now.used - amount)
        return amount


class Scripted:
    """A policy that answers what a test wants."""

    name = "scripted"
    overcommit = True
    answer: object = Plan({})

    def auto_guarantee(self, _: VeType) -> int:
        return 0

    def interval(self) -> float:
        return 1.0

    def plan(self, _: View) -> Plan:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def balancer(ves: dict[str, Fake], policy: object) -> tuple[Balancer, Round, list[Placed]]:
    placed: list[Placed] = []
    made = Balancer(policy, lambda each: ves.get(each.name), placed.append)  # type: ignore[arg-type]
    return made, Round(NODE, [entry(name, 10 * MIB) for name in ves]), placed


def test_only_changes_are_written() -> None:
    ves = {"a": Fake(), "b": Fake()}
    policy = Scripted()
    policy.answer = Plan({"a": Protection(low=50 * MIB)}, {"b": 30 * MIB})
    made, about, _ = balancer(ves, policy)
    for _ in range(5):
        made.round(about)
    assert [len(ve.written) for ve in ves.values()] == [1, 1]
    assert ves["b"].written == [(10 * MIB, Protection())]
    assert made.counts.taken == 5 * 30 * MIB
    policy.answer = Plan({"a": Protection(low=51 * MIB)})
    made.round(about)
    assert len(ves["a"].written) == 1  # too little to matter
    policy.answer = Plan({"a": Protection(low=80 * MIB, high=90 * MIB)})
    made.round(about)
    assert ves["a"].written[-1] == (10 * MIB, Protection(80 * MIB, 90 * MIB))


@pytest.mark.parametrize(
    "nonsense",
    [
        ZeroDivisionError("defect"),
        Plan({"a": Protection(low=-1)}),
        Plan({"a": Protection(high=5 * MIB)}),  # below the guarantee
        Plan({"a": Protection(low=0.5)}),  # type: ignore[arg-type]
        Plan({"nobody": Protection()}),
        None,
    ],
)
def test_a_policy_that_fails_changes_nothing(nonsense: object, caplog) -> None:
    ves = {"a": Fake()}
    policy = Scripted()
    policy.answer = Plan({"a": Protection(low=50 * MIB)})
    made, about, _ = balancer(ves, policy)
    made.round(about)
    policy.answer = nonsense
    with caplog.at_level(logging.ERROR):
        made.round(about)
    assert ves["a"].written == [(10 * MIB, Protection(low=50 * MIB))]
    assert made.given == {"a": Protection(low=50 * MIB)}
    assert made.counts.failures == 1
    assert "scripted failed; everything stays" in caplog.text
    # Nor does one get in force whose first round fails.
    good, about, _ = balancer(ves, NOOP)
    with pytest.raises(InternalError, match="noop stays in force"):
        good.switch(policy, about)  # type: ignore[arg-type]
    assert good.policy is NOOP


def test_one_that_ends_stops_nobody() -> None:
    ves = {"a": Fake(), "b": Fake(), "c": Fake()}
    made, about, _ = balancer(ves, NOOP)
    made.round(about)
    ves["a"].broken = True
    ves["b"].now = None
    made.round(about)
    assert list(made.given) == ["c"]
    assert made.counts.rounds == 2


# -- NUMA -------------------------------------------------------------------------------------

TWO = (NumaNode(0, "0-3", 4 * GIB), NumaNode(1, "4-7", 4 * GIB))


def seen(name: str, used: int, *, pinned: bool = False) -> Ve:
    return Ve(entry(name, limit=UNLIMITED), Sample(used), Sample(used), Protection(), pinned)


def view(ves: dict[str, Ve], numa: tuple[NumaNode, ...] = TWO, seconds: float = 30.0) -> View:
    return View(NODE, ves, seconds, numa)


def test_everybody_gets_the_freest_node() -> None:
    ves = {name: seen(name, size * GIB) for name, size in (("a", 3), ("b", 2), ("c", 1))}
    ves["p"] = seen("p", GIB, pinned=True)
    ves["big"] = seen("big", 5 * GIB)
    found = Placement().protections(view(ves))
    assert {name: made.mems for name, made in found.items()} == {
        "a": "0", "b": "1", "c": "1", "p": None, "big": None,
    }  # fmt: skip
    assert found["b"].cpus == "4-7"
    assert set(Placement().protections(view(ves, TWO[:1])).values()) == {Protection()}


def test_one_moves_when_a_node_is_much_busier() -> None:
    placement = Placement(every=300.0, imbalance=0.5)
    ves = {name: seen(name, GIB) for name in "abcd"}
    before = placement.protections(view(ves))
    there = [name for name, made in before.items() if made.mems == "0"]
    for name in set(ves) - set(there):
        ves[name] = seen(name, 0)
    assert placement.protections(view(ves)) == before  # not sooner than every 300 s
    after = placement.protections(view(ves, seconds=300.0))
    assert sum(before[name].mems != made.mems for name, made in after.items()) == 1


def test_a_placement_is_put_in_force_and_taken_back() -> None:
    ves = {"a": Fake()}
    policy = Scripted()
    policy.answer = Plan({"a": Protection(cpus="0-3", mems="0")})
    made, about, placed = balancer(ves, policy)
    made.round(about)
    made.switch(NOOP, about)
    assert placed == [Placed("a", "0-3", "0"), Placed("a", None, None)]


# -- pressure ---------------------------------------------------------------------------------


class World:
    """Four VEs on a node of 1 GiB: one that works, three that read a lot."""

    def __init__(self) -> None:
        self.policy = pressure.Policy()
        self.now = {name: Sample(used=0) for name in ("hot", "c1", "c2", "c3")}
        self.before: dict[str, Sample] = {}
        self.plan = Plan({})

    def set(self, name: str, used: int, active: float, **more: int) -> None:
        cache = used * MIB
        self.now[name] = self.now[name]._replace(
            used=cache, cache=cache, active=int(cache * active), **more
        )

    def round(self, free: int, seconds: float = 1.0) -> Plan:
        node = NodeMemory(total=GIB, usable=GIB, free=free * MIB)
        ves = {
            name: Ve(entry(name, limit=700 * MIB), now, self.before.get(name), Protection())
            for name, now in self.now.items()
        }
        self.plan = self.policy.plan(View(node, ves, seconds))
        self.before = dict(self.now)
        return self.plan

    def high(self, name: str) -> int:
        return self.plan.protections[name].high


@pytest.fixture
def world() -> World:
    """The hot one has worked undisturbed; then the others have come and filled the node."""
    made = World()
    made.set("hot", 500, 1.0)
    for name in ("c1", "c2", "c3"):
        made.set(name, 20, 0.0)
    for _ in range(10):
        made.round(400)
    for number, name in enumerate(("c1", "c2", "c3")):
        made.set(name, 160 + number, 0.3, fresh=5000)
    made.round(10)
    return made


def robbed(world: World, times: int = 1) -> None:
    """The hot one has lost 100 MiB and reads them again; the others read on."""
    back = world.now["hot"].refaults
    for step in range(1, times + 1):
        world.set("hot", 400, 1.0, refaults=back + step * 20 * MIB)
        for name in ("c1", "c2", "c3"):
            fresh = world.now[name].fresh + 5000
            world.set(name, world.now[name].used // MIB, 0.3, fresh=fresh)
        world.round(10)


def test_strays_are_held_when_memory_becomes_scarce(world: World) -> None:
    assert all(world.high(name) < 170 * MIB for name in ("c1", "c2", "c3"))
    assert world.high("hot") == UNLIMITED
    assert not world.plan.take
    assert world.plan.protections["hot"].low > 400 * MIB
    assert world.plan.protections["c1"].low < 50 * MIB


def test_who_was_robbed_gets_it_back_from_strays(world: World) -> None:
    robbed(world)
    assert set(world.plan.take) == {"c1", "c2", "c3"}
    assert all(world.high(name) < world.now[name].used for name in world.plan.take)
    assert world.high("hot") == UNLIMITED
    assert world.policy.interval() == 0.5


def test_strays_that_miss_something_get_a_trial_only(world: World) -> None:
    taken = 0
    for step in range(1, 5):
        for name in ("c1", "c2", "c3"):
            more = {"refaults": step * 30 * MIB, "fresh": 5000 * (step + 1)}
            world.set(name, 160, 0.6, **more)
        taken += world.round(10).take.get("hot", 0)
        assert world.plan.protections["hot"].low > 400 * MIB
    assert taken <= 16 * MIB


def test_cold_ones_give_before_the_working_set_is_missed() -> None:
    world = World()
    world.set("hot", 300, 1.0)
    for name, once in (("c1", 0.9), ("c2", 0.1), ("c3", 0.9)):
        world.set(name, 230, once)
    for _ in range(10):
        world.round(10)
    world.set("hot", 280, 1.0, refaults=20 * MIB)
    world.round(0)
    # c2 has used most of its cache only once: it is asked first, and suffices.
    assert list(world.plan.take) == ["c2"]
    assert world.high("c2") == world.now["c2"].used - world.plan.take["c2"]
    # It misses that: so it needed it, and its ceiling goes.
    world.set("c2", 220, 1.0, refaults=50 * MIB)
    world.round(0)
    assert "c2" not in world.plan.take
    assert world.high("c2") == UNLIMITED


def test_nothing_without_a_file_is_asked_for(world: World) -> None:
    for name in ("c1", "c2", "c3"):
        world.now[name] = world.now[name]._replace(anon=150 * MIB, cache=10 * MIB, active=0)
    robbed(world)
    for name in ("c1", "c2", "c3"):
        world.now[name] = world.now[name]._replace(anon=155 * MIB, cache=5 * MIB)
        assert world.high(name) >= 150 * MIB
    world.round(10)
    assert all(world.high(name) > 155 * MIB for name in ("c1", "c2", "c3"))


def test_ceilings_vanish_when_memory_is_plenty(world: World) -> None:
    robbed(world, 3)
    assert world.high("c1") < UNLIMITED
    for _ in range(60):
        world.round(700, seconds=5.0)
    assert all(world.high(name) == UNLIMITED for name in world.now)
    assert world.policy.interval() == 1.0
