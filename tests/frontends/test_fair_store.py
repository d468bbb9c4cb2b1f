"""Bounded memory that tenants share. `test_idempotency.py` and `test_stored_responses.py` test its bounds."""

import pytest

from frontends.access.fair_store import FairStore


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_new_entry_drops_the_expired_ones_of_all_tenants():
    clock, dropped = Clock(), []
    store = FairStore(clock, 10, 100, dropped=dropped.append)
    for tenant in "abc":
        store.put(tenant, "x", f"{tenant}'s", 1)
        clock.now += 4
    store.put("d", "x", "d's", 1)
    assert (dropped, len(store), store.bytes) == (["a's"], 3, 3)


def test_a_replaced_entry_keeps_its_age():
    clock = Clock()
    store = FairStore(clock, 10, 100)
    store.put("a", "x", "old", 1)
    clock.now = 6
    store.replace("a", "x", "new", 3)
    assert (store.get("a", "x"), store.bytes) == ("new", 3)
    clock.now = 10
    assert (store.get("a", "x"), store.bytes) == (None, 0)
    with pytest.raises(KeyError):
        store.replace("a", "x", "newer", 1)


def test_the_tenant_with_the_most_entries_loses_its_oldest():
    dropped = []
    store = FairStore(Clock(), 10, 100, 4, dropped.append)
    for name in ("b1", "a1", "a2", "a3", "b2"):
        store.put(name[0], name, name, 1)
    assert dropped == ["a1"]
    store.put("b", "b3", "b3", 1)
    assert dropped == ["a1", "b1"]


def test_what_is_taken_out_is_not_dropped():
    dropped = []
    store = FairStore(Clock(), 10, 100, dropped=dropped.append)
    store.put("a", "x", "first", 1)
    store.put("a", "x", "second", 1)
    assert store.pop("b", "x") is None
    assert (store.pop("a", "x"), store.pop("a", "x"), dropped, len(store)) == ("second", None, [], 0)


def test_an_entry_larger_than_the_store_drops_no_other():
    dropped = []
    store = FairStore(Clock(), 10, 100, dropped=dropped.append)
    assert store.put("a", "x", "small", 50)
    assert not store.put("a", "y", "large", 101)
    assert (dropped, store.get("a", "x"), store.get("a", "y"), store.bytes) == ([], "small", None, 50)
    assert store.put("a", "z", "small", 50)
    store.replace("a", "z", "large", 101)
    assert (dropped, store.get("a", "x"), store.get("a", "z"), store.bytes) == (["large"], "small", None, 50)


def test_an_entry_that_is_dropped_at_once_is_not_kept():
    store = FairStore(Clock(), 10, 100)
    assert all(store.put(tenant, "x", "small", 40) for tenant in "ab")
    assert not store.put("c", "x", "large", 60)
    assert (len(store), store.bytes) == (2, 80)


def test_spared_entries_go_last():
    dropped = []
    store = FairStore(Clock(), 10, 100, 3, dropped.append, str.isupper)
    for name in ("X", "a", "Y", "b"):
        assert store.put("one", name, name, 1)
    assert store.put("one", "Z", "Z", 1)
    assert dropped == ["a", "b"]
    # A tenant with nothing but spared entries gets no more of them, nor of others.
    assert not store.put("one", "V", "V", 1)
    assert not store.put("one", "c", "c", 1)
    assert dropped == ["a", "b", "V", "c"]
    # Another tenant gets its share.
    assert store.put("two", "x", "x", 1)
    assert dropped[4:] == ["Z"]
    store.replace("one", "Y", "Y", 98)
    assert (dropped[5:], store.bytes) == ([], 100)
    # A regression: the answer that had just become complete was dropped in favour of those that still ran.
    store.replace("one", "Y", "y", 99)
    assert (dropped[5:], store.bytes) == (["X"], 100)
    store.replace("one", "Y", "y", 100)
    assert (dropped[6:], store.bytes) == (["y"], 1)
