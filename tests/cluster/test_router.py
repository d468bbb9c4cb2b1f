"""The router without Ray."""

from collections import Counter

import attrs
import pytest

from frontends.cluster.relay import RelayedRequest
from frontends.cluster.replica_load import NEW


@attrs.frozen
class Name:
    unique_id: str


@attrs.frozen(eq=False)
class Running:
    """The part of Ray's RunningReplica that the router reads."""

    replica_id: Name
    routing_stats: dict = attrs.field(factory=dict)


@attrs.frozen
class Pending:
    args: tuple


@pytest.fixture
def router():
    from frontends.cluster.router import PredictedWaitRouter

    # Without Ray's initialization, which needs a cluster.
    one = object.__new__(PredictedWaitRouter)
    one.initialize_state()
    return one


def told(name, **fields):
    return Running(Name(name), attrs.asdict(attrs.evolve(NEW, **fields)))


async def order(router, replicas, avoid=(), key=""):
    headers = (("idempotency-key", key),) if key else ()
    ranks = await router.choose_replicas(replicas, Pending((RelayedRequest("POST", "/v1/completions", headers, b"{}"), avoid)))
    names = [one.replica_id.unique_id for [one] in ranks]
    assert sorted(names) == sorted(one.replica_id.unique_id for one in replicas)
    return names


async def first(router, replicas, **more):
    return (await order(router, replicas, **more))[0]


@pytest.mark.parametrize("burst", [2, 4, 50])
async def test_a_burst_is_distributed_before_any_report_or_answer(router, burst):
    replicas = [Running(Name("a")), Running(Name("b"))]
    assert Counter([await first(router, replicas) for _ in range(burst)]) == {"a": burst // 2, "b": burst // 2}


async def test_a_replica_s_report_replaces_the_count_of_sent_requests(router):
    # One report: "a" gets three requests before it is busier than "b", which gets the fourth or
    # fifth.
    replicas = [told("a", number=1, running=0), told("b", number=1, running=3)]
    assert [await first(router, replicas) for _ in range(3)] == ["a"] * 3
    assert Counter([await first(router, replicas) for _ in range(2)]) == {"a": 1, "b": 1}
    # A repeated report changes nothing; the next report does.
    replicas = [told("a", number=2, running=0), told("b", number=1, running=3)]
    assert [await first(router, replicas) for _ in range(4)] == ["a"] * 4


async def test_a_replica_that_has_refused_comes_last(router):
    replicas = [told("a", number=1, running=0), told("b", number=1, running=3), told("c", number=1, running=2)]
    assert await order(router, replicas, avoid=("a",)) == ["c", "b", "a"]


async def test_a_replica_without_a_recent_report_is_tried_after_the_others(router):
    """A regression: an unreachable idle replica got requests for a minute, until Ray noticed."""
    now = 0.0
    router._clock = lambda: now
    for number in range(1, 9):
        replicas = [told("a", number=1), told("b", number=number, running=9), told("c", number=number, running=9)]
        names = await order(router, replicas)
        assert now <= 3.0 or names[2] == "a"
        now += 0.5
    assert (await order(router, replicas, avoid=("b",)))[1:] == ["a", "b"]
    assert {await first(router, replicas, key=f"key {number}") for number in range(30)} == {"b", "c"}
    # If all replicas are silent, the network is not the cause.
    now = 60.0
    assert "a" in {await first(router, replicas) for _ in range(30)}
    # The replica is back.
    assert await first(router, [told("a", number=2), *replicas[1:]]) == "a"


async def test_a_request_with_a_key_goes_to_the_same_replica_regardless_of_its_load(router):
    replicas = [told(name, number=1) for name in "abcd"]
    keys = [f"key {number}" for number in range(200)]
    places = {key: await order(router, replicas, key=key) for key in keys}
    # Each replica has its share of the keys.
    assert min(Counter(place[0] for place in places.values()).values()) > 25
    for key in keys:
        assert await order(router, replicas[::-1], key=key) == places[key]
        # If the key's replica has refused or takes no requests, the next one is fixed as well.
        one, two, three, four = places[key]
        assert await order(router, replicas, key=key, avoid=(one,)) == [two, three, four, one]
        starting = [told(name, number=2, ready=name != two) for name in "abcd"]
        assert await order(router, starting, key=key) == [one, three, four, two]
        # When a replica leaves, only its keys move.
        assert await first(router, [told(name, number=3) for name in "abcd" if name != four], key=key) == one


async def test_nothing_is_kept_of_replicas_that_have_left(router):
    await first(router, [told("a", number=1), told("b", number=1)])
    await first(router, [told("b", number=1)])
    assert router._sent.keys() == router._loads.keys() == router._heard.keys() == {Name("b")}
