"""A stream alone, between an engine and a reader: its times, and calls of `notify`'s callback."""

import anyio
import pytest

from llmserve import Delta, EngineError, Timeline, TokenStream
from llmserve.engine import EngineTimings
from llmserve.observability.metrics import Observers

pytestmark = pytest.mark.anyio


@pytest.fixture
async def stream():
    made = TokenStream(Timeline(prompt_tokens=3), lambda: 7.0, Observers(()), on_end=lambda: None)
    made.replay()
    return made


async def test_the_engine_s_final_report_is_recorded(stream):
    stream.put(Delta("a", (1,)))
    stream.put(Delta("b", (2,), "stop"), EngineTimings(queued=1.0, scheduled=2.0, first_token=3.0, last_token=4.0, cached_tokens=5))
    found = stream.timeline
    assert (found.engine_queued, found.engine_scheduled, found.engine_first_token, found.engine_last_token) == (1.0, 2.0, 3.0, 4.0)
    assert (await stream.collect()).usage.cached_tokens == found.cached_tokens == 5


async def test_a_late_notify_calls_back_at_once(stream):
    stream.put(Delta("a", (1,)))
    told = []
    stream.notify(lambda: told.append(stream.take()))
    assert told == [Delta("a", (1,))]
    stream.put(Delta("b", (2,), "stop"))
    assert told[-1] == Delta("b", (2,), "stop")
    # It reports an end without tokens, too.
    stream.notify(lambda: told.append(None))
    assert told[-1] is None


async def test_an_early_notify_does_not_call_back_yet(stream):
    told = []
    stream.notify(lambda: told.append(1))
    assert told == []


async def test_an_answer_without_a_finish_reason_is_an_error(stream):
    stream.put(Delta("a", (1,)))
    stream._end()
    with pytest.raises(EngineError, match="without a finish reason"):
        await stream.collect()


async def test_a_reader_that_asks_for_fewer_deltas_gets_the_first_token_then_so_many_then_the_end():
    stream = TokenStream(Timeline(), lambda: 7.0, Observers(()), on_end=lambda: None, interval=3)
    stream.replay()
    told = []
    stream.notify(lambda: told.append(stream.take()))
    for token in range(1, 9):
        stream.put(Delta("x", (token,), "length" if token == 8 else None))
    assert [delta.token_ids for delta in told] == [(1,), (2, 3, 4), (5, 6, 7), (8,)]
    assert told[-1].finish_reason == "length"


async def test_an_iterating_reader_waits_for_its_interval_too():
    stream = TokenStream(Timeline(), lambda: 7.0, Observers(()), on_end=lambda: None, interval=2)
    stream.replay()
    read, failures = [], []

    async def reading():
        try:
            async for delta in stream:
                read.append(delta.token_ids)
        except EngineError as error:
            failures.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reading)
        for token in range(1, 5):
            stream.put(Delta("x", (token,)))
            await anyio.wait_all_tasks_blocked()
        assert read == [(1,), (2, 3)]
        stream.fail(EngineError("gone"))
        await anyio.wait_all_tasks_blocked()
    # The tokens come before the error.
    assert read[-1] == (4,)
    assert failures == ["gone"]
