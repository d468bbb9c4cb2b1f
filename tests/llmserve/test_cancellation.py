import math
import threading

from llmserve import CancellationToken


def test_the_first_reason_wins():
    token = CancellationToken()
    assert token.cancel("one")
    assert not token.cancel("two")
    assert token.cancelled
    assert token.reason == "one"


def test_a_callback_runs_once_with_the_reason():
    token, heard = CancellationToken(), []
    token.add_callback(heard.append)
    token.cancel("now")
    token.cancel("again")
    assert heard == ["now"]


def test_a_callback_added_after_cancellation_runs_at_once():
    token, heard = CancellationToken(), []
    token.cancel("before")
    token.add_callback(heard.append)
    assert heard == ["before"]


def test_a_removed_callback_does_not_run():
    token, heard = CancellationToken(), []
    remove = token.add_callback(heard.append)
    remove()
    remove()
    token.cancel()
    assert heard == []


def test_a_child_is_cancelled_with_any_parent_and_not_the_other_way_round():
    first, second = CancellationToken(), CancellationToken()
    child = CancellationToken(first, second)
    second.cancel("parent")
    assert child.reason == "parent"
    assert not first.cancelled


def test_a_child_of_a_cancelled_parent_is_born_cancelled():
    parent = CancellationToken()
    parent.cancel("early")
    assert CancellationToken(parent).reason == "early"


def test_a_closed_child_leaves_nothing_in_its_parent():
    parent = CancellationToken()
    for _ in range(100):
        CancellationToken(parent).close()
    assert "0 callbacks" in repr(parent)


def test_a_child_ends_no_later_than_its_parents():
    parent = CancellationToken(deadline=5.0)
    assert CancellationToken(parent).deadline == 5.0
    assert CancellationToken(parent, deadline=3.0).deadline == 3.0
    assert CancellationToken().deadline == math.inf


def test_of_many_threads_exactly_one_cancels():
    token, wins, barrier = CancellationToken(), [], threading.Barrier(8)

    def cancel(number):
        barrier.wait()
        if token.cancel(str(number)):
            wins.append(str(number))

    threads = [threading.Thread(target=cancel, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins == [token.reason]


def test_cancelled_and_closed_tokens_hold_no_callbacks():
    parent = CancellationToken()
    child, closed = CancellationToken(parent), CancellationToken(parent)
    child.add_callback(lambda reason: None)
    assert "2 callbacks" in repr(parent)
    child.cancel()
    assert "0 callbacks" in repr(child)
    assert "1 callbacks" in repr(parent)
    closed.close()
    assert "0 callbacks" in repr(parent)
