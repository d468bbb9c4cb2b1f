"""An ingress's choice of a replica."""

from collections import Counter

import attrs
import pytest

from frontends.cluster.replica_directory import ReplicaAddress, ReplicaDirectory, ReplicaReport
from frontends.cluster.replica_load import NEW


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def directory(clock):
    return ReplicaDirectory(clock)


def told(name, silent=0.0, **fields):
    return {name: ReplicaReport(ReplicaAddress(name, "10.0.0.1", 8000, "secret"), attrs.evolve(NEW, **fields), silent)}


def chosen(directory, **more):
    return directory.choose(**more).replica


@pytest.mark.parametrize("burst", [2, 4, 50])
def test_a_burst_is_distributed_before_any_report_or_answer(directory, burst):
    directory.learn(told("a") | told("b"))
    assert Counter(chosen(directory) for _ in range(burst)) == {"a": burst // 2, "b": burst // 2}


def test_a_replica_s_report_replaces_the_count_of_sent_requests(directory):
    # One report: "a" gets three requests before it is busier than "b", which gets the fourth or
    # fifth.
    directory.learn(told("a", number=1, running=0) | told("b", number=1, running=3))
    assert [chosen(directory) for _ in range(3)] == ["a"] * 3
    assert Counter(chosen(directory) for _ in range(2)) == {"a": 1, "b": 1}
    # A repeated report changes nothing; the next report does.
    directory.learn(told("a", number=1, running=0) | told("b", number=1, running=3))
    assert Counter(chosen(directory) for _ in range(2)) == {"a": 1, "b": 1}
    directory.learn(told("a", number=2, running=0) | told("b", number=2, running=3))
    assert [chosen(directory) for _ in range(3)] == ["a"] * 3


def test_a_replica_that_has_refused_comes_last_and_is_not_chosen_again(directory):
    directory.learn(told("a", number=1, running=0) | told("b", number=1, running=3) | told("c", number=1, running=2))
    assert directory.order(avoided=("a",)) == ["c", "b", "a"]
    assert directory.choose(avoided=("a", "b", "c")) is None


def test_a_replica_without_a_recent_report_is_tried_after_the_others(directory, clock):
    """A regression: an unreachable idle replica got requests for a minute, until Ray noticed."""
    for number in range(1, 9):
        reports = told("a", number=1) | told("b", number=number, running=9) | told("c", number=number, running=9)
        directory.learn(reports)
        assert clock.now <= 3.0 or directory.order()[2] == "a"
        clock.now += 0.5
    assert directory.order(avoided=("b",))[1:] == ["a", "b"]
    assert {chosen(directory, key=f"key {number}") for number in range(30)} == {"b", "c"}
    # If all replicas are silent, the network is not the cause.
    clock.now = 60.0
    assert "a" in {chosen(directory) for _ in range(30)}
    # The replica is back.
    directory.learn(reports | told("a", number=2))
    assert chosen(directory) == "a"


def test_the_age_of_a_report_counts_for_an_ingress_that_starts_later(directory):
    directory.learn(told("a", silent=3.5, number=7) | told("b", number=7, running=9))
    assert directory.order() == ["b", "a"]


def test_a_replica_that_could_not_be_reached_is_tried_last_until_it_reports(directory):
    directory.learn(told("a", number=1) | told("b", number=1, running=9))
    directory.doubt("a")
    directory.learn(told("a", number=1) | told("b", number=2, running=9))
    assert directory.order() == ["b", "a"]
    directory.learn(told("a", number=2) | told("b", number=3, running=9))
    assert directory.order() == ["a", "b"]
    # It may have left in the meantime.
    directory.doubt("c")


def test_a_request_with_a_key_goes_to_the_same_replica_regardless_of_its_load(directory, clock):
    def learn(names, number, starting=""):
        directory.learn({name: report for name in names for name, report in told(name, number=number, ready=name != starting).items()})

    learn("abcd", 1)
    keys = [f"key {number}" for number in range(200)]
    places = {key: directory.order(key) for key in keys}
    # Each replica has its share of the keys.
    assert min(Counter(place[0] for place in places.values()).values()) > 25
    for number, key in enumerate(keys, start=1):
        learn("dcba", 4 * number)
        assert directory.order(key) == places[key]
        # If the key's replica has refused or takes no requests, the next one is fixed as well.
        one, two, three, four = places[key]
        assert directory.order(key, avoided=(one,)) == [two, three, four, one]
        learn("abcd", 4 * number + 1, starting=two)
        assert directory.order(key) == [one, three, four, two]
        # When a replica leaves, only its keys move.
        learn([name for name in "abcd" if name != four], 4 * number + 2)
        assert chosen(directory, key=key) == one


def test_nothing_is_kept_of_replicas_that_have_left(directory):
    directory.learn(told("a", number=1) | told("b", number=1))
    directory.choose()
    directory.choose()
    directory.learn(told("b", number=1))
    assert directory._sent.keys() == directory._loads.keys() == directory._heard.keys() == directory._addresses.keys() == {"b"}
