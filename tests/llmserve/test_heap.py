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
    first, second, cycle = object(), object(), Cycle()
    left = weakref.ref(cycle)
    set_heap_aside(first)
    set_heap_aside(second)
    del cycle
    release(first)
    assert left() is None
    release(second)


def test_an_engine_that_was_never_up_releases_nothing_of_another():
    up, failed = object(), object()
    set_heap_aside(up)
    release(failed)
    assert gc.get_freeze_count() > 0
    release(up)
