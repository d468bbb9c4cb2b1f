"""The heap is aside while any engine runs."""

import gc
import weakref

import pytest

from llmserve.runtime.heap import release, set_heap_aside


@pytest.fixture(autouse=True)
def after():
    yield
    gc.unfreeze()


class Cycle:
    def __init__(self):
        self.me = self


def test_it_is_aside_until_the_last_engine_ends():
    first, second = object(), object()
    set_heap_aside(first)
    set_heap_aside(second)
    release(first)
    assert gc.get_freeze_count() > 0
    release(second)
    assert gc.get_freeze_count() == 0


def test_what_an_engine_leaves_is_collected_while_another_runs():
    first, second = object(), object()
    set_heap_aside(first)
    cycle = Cycle()
    left = weakref.ref(cycle)
    set_heap_aside(second)
    del cycle
    release(second)
    assert left() is None
    release(first)


def test_a_death_beside_another_engine_leaves_the_heap_aside():
    """The other engine's streams would wait for a full collection, 0.4 s with vLLM's objects."""
    first, second, third, cycle = object(), object(), object(), Cycle()
    left = weakref.ref(cycle)
    set_heap_aside(first)
    set_heap_aside(second)
    aside = gc.get_freeze_count()
    del cycle
    release(first)
    set_heap_aside(third)
    assert gc.get_freeze_count() == aside
    assert left() is not None
    release(second)
    release(third)
    assert left() is None


def test_an_engine_that_was_never_up_releases_nothing_of_another():
    up, failed = object(), object()
    set_heap_aside(up)
    release(failed)
    assert gc.get_freeze_count() > 0
    release(up)
