"""The ingress with replicas that refuse, die or are unreachable, which a scripted handle plays."""

import asyncio
import contextlib
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from virtual import VirtualLoop

from frontends.cluster.autoscaling import desired_ingresses
from frontends.cluster.ingress import SILENT_SECONDS, Ingress
from frontends.cluster.relay import BEAT, RelayedRequest, ReplicaAccepted, ResponseHead, with_beats
from frontends.cluster.replica import Replica
from llmserve import EngineRestarted, Unavailable

ASKED = RelayedRequest("POST", "/v1/completions", (), b"{}")
EVENTS = ResponseHead(200, (("Content-Type", "text/event-stream; charset=utf-8"),))
WHOLE = ResponseHead(200, (("Content-Type", "application/json"),))


@pytest.fixture
def anyio_backend():
    """These tests need only memory."""
    return "asyncio", {"loop_factory": VirtualLoop}


# Steps of a script: the replica dies, takes two seconds, or becomes silent.
DEATH, PAUSE, SILENCE = object(), object(), object()


def refusal(milliseconds):
    return ResponseHead(503, (("Content-Type", "application/json"), ("Retry-After-Ms", str(milliseconds))))


class Handle:
    """A handle that answers the first request with the first script, and so on."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.avoided = []
        self.cancelled = 0

    def options(self, **_):
        return self

    def remote(self, asked, avoid):
        self.avoided.append(avoid)
        return Messages(self, iter(self.scripts.pop(0)))


class Messages:
    def __init__(self, handle, messages):
        self._handle = handle
        self._messages = messages

    def __aiter__(self):
        return self

    async def __anext__(self):
        message = next(self._messages, None)
        if message is PAUSE:
            await asyncio.sleep(2.0)
            return await self.__anext__()
        if message is SILENCE:
            await asyncio.Event().wait()
        if message is None:
            raise StopAsyncIteration
        if message is DEATH:
            from ray.exceptions import ActorDiedError

            raise ActorDiedError
        return message

    def cancel(self):
        self._handle.cancelled += 1


async def ask(*scripts):
    handle = Handle(*scripts)
    return await Ingress(handle)._ask(ASKED), handle


async def test_a_whole_answer_is_held_until_it_is_whole():
    answer, handle = await ask([ReplicaAccepted("a"), WHOLE, b"one ", b"two"])
    assert (answer.head, answer.body, answer.replica) == (WHOLE, b"one two", "a")
    assert handle.avoided == [()]


async def test_a_replica_that_dies_before_its_answer_is_complete_is_replaced():
    answer, _ = await ask([ReplicaAccepted("a"), WHOLE, b"one ", DEATH], [DEATH], [ReplicaAccepted("b"), WHOLE, b"three"])
    assert answer.body == b"three"


async def test_a_stream_that_has_sent_nothing_is_begun_again():
    answer, _ = await ask([ReplicaAccepted("a"), EVENTS, DEATH], [ReplicaAccepted("b"), EVENTS, b"data: 1\n\n", b"data: 2\n\n"])
    assert [chunk async for chunk in answer.events()] == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_a_stream_that_has_begun_ends_with_an_error_event():
    answer, handle = await ask([ReplicaAccepted("a"), EVENTS, b"data: 1\n\n", DEATH])
    first, last = [chunk async for chunk in answer.events()]
    assert first == b"data: 1\n\n"
    assert b'"code":"engine_restarted"' in last
    assert last.endswith(b"\n\ndata: [DONE]\n\n")
    assert handle.cancelled == 1


async def test_a_request_that_kills_every_replica_is_given_up():
    with pytest.raises(EngineRestarted, match="3 replicas"):
        await ask([ReplicaAccepted("a"), DEATH], [ReplicaAccepted("b"), DEATH], [ReplicaAccepted("c"), DEATH])


async def test_another_replica_may_take_a_refused_request():
    answer, handle = await ask([ReplicaAccepted("a"), refusal(900), b"no"], [ReplicaAccepted("b"), WHOLE, b"yes"])
    assert answer.body == b"yes"
    assert handle.avoided == [(), ("a",)]


@pytest.mark.parametrize(("first", "second", "body"), [(900, 300, b"second"), (300, 900, b"first")])
async def test_of_two_refusals_the_one_with_the_shorter_retry_after_counts(first, second, body):
    answer, handle = await ask([ReplicaAccepted("a"), refusal(first), b"first"], [ReplicaAccepted("b"), refusal(second), b"second"])
    assert answer.body == body
    assert len(handle.avoided) == 2


async def test_without_another_replica_the_refusal_is_returned():
    answer, handle = await ask([ReplicaAccepted("a"), refusal(900), b"no"], [ReplicaAccepted("a")])
    assert (answer.body, len(handle.avoided)) == (b"no", 2)


async def test_a_client_error_is_not_tried_elsewhere():
    answer, handle = await ask([ReplicaAccepted("a"), ResponseHead(429, ()), b"your own limit"])
    assert (answer.head.status, len(handle.avoided)) == (429, 1)


async def test_a_replica_that_does_not_accept_the_request_is_replaced():
    """A regression: with one unreachable host the error said that no replica takes requests."""
    answer, handle = await ask([SILENCE], [SILENCE], [ReplicaAccepted("b"), WHOLE, b"yes"])
    assert (answer.body, handle.cancelled, len(handle.avoided)) == (b"yes", 2, 3)


async def test_if_no_replica_accepts_it_the_client_gets_retry_after():
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(Unavailable, match="no replica") as raised:
        await ask(*[[SILENCE]] * 4)
    assert (loop.time() - began, raised.value.retry_after) == (pytest.approx(10.0), 10.0)


async def test_a_refusal_is_returned_if_no_other_replica_accepts_the_request():
    answer, _ = await ask([ReplicaAccepted("a"), refusal(900), b"no"], *[[SILENCE]] * 4)
    assert answer.body == b"no"


async def test_a_replica_that_is_silent_for_too_long_is_lost():
    """A regression: streams of an unreachable host ended after a minute."""
    answer, _ = await ask([ReplicaAccepted("a"), WHOLE, SILENCE], [ReplicaAccepted("b"), EVENTS, b"data: 1\n\n", SILENCE])
    first, last = [chunk async for chunk in answer.events()]
    assert first == b"data: 1\n\n"
    assert b'"code":"engine_restarted"' in last


async def test_a_replica_that_sends_beats_may_take_its_time():
    beats = [PAUSE, BEAT] * 30
    answer, _ = await ask([ReplicaAccepted("a"), *beats, EVENTS, *beats, b"data: 1\n\n", *beats, b"data: 2\n\n"])
    assert [chunk async for chunk in answer.events()] == [b"data: 1\n\n", b"data: 2\n\n"]
    answer, _ = await ask([ReplicaAccepted("a"), *beats, EVENTS, *beats, DEATH], [ReplicaAccepted("b"), WHOLE, *beats, b"yes"])
    assert (answer.replica, answer.body) == ("b", b"yes")


async def test_a_silent_answer_sends_beats():
    closed = []

    async def messages():
        try:
            for number in range(3):
                await asyncio.sleep(5.0 * number)
                yield b"%d" % number
        finally:
            closed.append(asyncio.get_running_loop().time())

    assert [message async for message in with_beats(messages(), 2.0)] == [b"0", BEAT, BEAT, b"1", *[BEAT] * 4, b"2"]
    # Leaving the generator closes it, and its errors propagate.
    async with contextlib.aclosing(with_beats(messages(), 2.0)) as left:
        assert [await anext(left) for _ in range(2)] == [b"0", BEAT]
    assert closed == [15.0, 17.0]

    async def failing():
        yield b"0"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        [message async for message in with_beats(failing(), 2.0)]


async def test_no_stream_is_taken_for_lost_for_any_number_of_streams():
    """With many streams messages are rare, but not so rare that the ingress gives up."""

    async def ask(_):
        yield EVENTS
        for number in range(3):
            yield b"data: %d\n\n" % number

    # The part of a replica that an answer needs; only Ray can build a complete one.
    busy: Any = SimpleNamespace(_id="a", _open=10_000, _rate=100.0, _relay=SimpleNamespace(ask=ask))
    clock = asyncio.get_running_loop().time
    times = [clock() async for _ in Replica.answer(busy, ASKED)]
    assert len(times) == 5
    assert max(after - before for before, after in itertools.pairwise(times)) < SILENT_SECONDS / 2


@pytest.mark.parametrize(("alive", "ingresses"), [([True], 2), ([True, True, True], 6), ([True, False, True], 4)])
async def test_there_are_as_many_ingresses_on_each_host(monkeypatch, alive, ingresses):
    # Patched, because real hosts would take a minute per test; test_hosts.py has real hosts.
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": one} for one in alive])
    assert desired_ingresses(SimpleNamespace(capacity_adjusted_min_replicas=2)) == (ingresses, {})
