"""What the ingress makes of replicas that refuse, and of replicas that die: played by a script in a handle's place."""

import pytest

from frontends.cluster.ingress import Answer, Ingress
from frontends.cluster.relay import Asked, Head, Taken
from llmserve import EngineRestarted, Unavailable

ASKED = Asked("POST", "/v1/completions", (), b"{}")
EVENTS = Head(200, (("Content-Type", "text/event-stream; charset=utf-8"),))
WHOLE = Head(200, (("Content-Type", "application/json"),))
# In a script: the replica dies here.
DEATH = object()


def refusal(milliseconds):
    return Head(503, (("Content-Type", "application/json"), ("Retry-After-Ms", str(milliseconds))))


class Handle:
    """Answers the first request with the first script, and so on."""

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
    answer, handle = await ask([Taken("a"), WHOLE, b"one ", b"two"])
    assert (answer.head, answer.body, answer.replica) == (WHOLE, b"one two", "a")
    assert handle.avoided == [()]


async def test_one_that_dies_before_its_answer_is_whole_is_replaced():
    answer, _ = await ask([Taken("a"), WHOLE, b"one ", DEATH], [DEATH], [Taken("b"), WHOLE, b"three"])
    assert answer.body == b"three"


async def test_a_stream_that_has_sent_nothing_is_begun_again():
    answer, _ = await ask([Taken("a"), EVENTS, DEATH], [Taken("b"), EVENTS, b"data: 1\n\n", b"data: 2\n\n"])
    assert [chunk async for chunk in answer.events()] == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_a_stream_that_has_sent_something_ends_with_an_event_that_says_so():
    answer, handle = await ask([Taken("a"), EVENTS, b"data: 1\n\n", DEATH])
    first, last = [chunk async for chunk in answer.events()]
    assert first == b"data: 1\n\n"
    assert b'"code":"engine_restarted"' in last
    assert last.endswith(b"\n\ndata: [DONE]\n\n")
    assert handle.cancelled == 1


async def test_a_request_that_kills_every_replica_is_given_up():
    with pytest.raises(EngineRestarted, match="3 replicas"):
        await ask([Taken("a"), DEATH], [Taken("b"), DEATH], [Taken("c"), DEATH])


async def test_what_one_refuses_another_may_take():
    answer, handle = await ask([Taken("a"), refusal(900), b"no"], [Taken("b"), WHOLE, b"yes"])
    assert answer.body == b"yes"
    assert handle.avoided == [(), ("a",)]


@pytest.mark.parametrize(("first", "second", "body"), [(900, 300, b"second"), (300, 900, b"first")])
async def test_of_two_refusals_the_one_counts_that_says_to_come_back_sooner(first, second, body):
    answer, handle = await ask([Taken("a"), refusal(first), b"first"], [Taken("b"), refusal(second), b"second"])
    assert answer.body == body
    assert len(handle.avoided) == 2


async def test_where_there_is_no_other_one_the_refusal_stands():
    answer, handle = await ask([Taken("a"), refusal(900), b"no"], [Taken("a")])
    assert (answer.body, len(handle.avoided)) == (b"no", 2)


async def test_a_refusal_for_what_the_client_did_is_not_tried_elsewhere():
    answer, handle = await ask([Taken("a"), Head(429, ()), b"your own limit"])
    assert (answer.head.status, len(handle.avoided)) == (429, 1)


async def test_where_no_replica_takes_it_the_client_is_told_to_come_back(monkeypatch):
    monkeypatch.setattr("frontends.cluster.ingress.TAKE_SECONDS", 0.01)

    class Silent(Messages):
        async def __anext__(self):
            import asyncio

            await asyncio.sleep(60)

    handle = Handle([])
    with pytest.raises(Unavailable, match="no replica"):
        await Answer(Silent(handle, iter(()))).begin()
    assert handle.cancelled == 1
