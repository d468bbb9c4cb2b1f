"""Deaths and restarts of one of two engines behind a server, on stand-in cores and on vLLM's.

`cores_of(process)` returns the processes of the cores.
"""

import json
import signal
from contextlib import asynccontextmanager

import anyio
from program_support import PATIENCE, Streams, fetch, metrics, read_to_end_of_answer, until
from support.worker_deaths import ASKED

STREAMS, WHOLE = 8, 8
# Bound of a restart in seconds; that of a real engine takes minutes on a busy machine.
RESTART = 300


def up(found):
    return [engine["up"] for engine in found["engines"]]


async def one_engine_dies(process, url, cores_of, sent, tokens, equal=True):
    """The streams of one core end, and nothing else is disturbed or waits for the restart.

    `tokens` is the length of all answers, and `sent` the signal to the core. Only engines that are
    `equal`ly fast surely have requests each.
    """
    before = await metrics(url)
    answers, told = [], []
    core = cores_of(process)[0]

    async def ask():
        answers.append(await fetch(f"{url}/generate", {**ASKED, "max_tokens": tokens, "ignore_eos": True}, timeout=PATIENCE))

    async def read(stream):
        told.append(await read_to_end_of_answer(stream))

    async with Streams(url) as streams, always_ready(url):
        for _ in range(STREAMS):
            await streams.begin(max_tokens=tokens)
        async with anyio.create_task_group() as tasks:
            for _ in range(WHOLE):
                tasks.start_soon(ask)
            found = await until(url, lambda found: found["engine"]["running"] == STREAMS + WHOLE)
            assert all(engine["running"] for engine in found["engines"]) or not equal
            core.send_signal(sent)
            for stream in streams.open:
                tasks.start_soon(read, stream)
        found = await metrics(url)
        assert sum(up(found)) == 1, "the answers waited for the restart"
    ended = [text for text in told if text.count(b"engine_restarted") == 1]
    assert 0 < len(ended) < STREAMS or not equal
    assert all(text.count(b"[DONE]") == 1 for text in told)
    assert sum(b"length" in text for text in told) == STREAMS - len(ended)
    assert [status for status, _ in answers] == [200] * WHOLE
    assert {json.loads(body)["usage"]["completion_tokens"] for _, body in answers} == {tokens}
    # Each request has one end in the counts: nothing is lost, and nothing counts twice.
    after = await until(url, lambda found: found["open"] == 0 and found["admission"]["running"] == 0)
    ends = {name: count - before["requests"].get(name, 0) for name, count in after["requests"].items()}
    assert ends["completed"] == WHOLE + STREAMS - len(ended)
    assert ends["failed"] == len(ended)
    after = await until(url, lambda found: all(up(found)), RESTART)
    assert after["restarts"] == before["restarts"] + 1
    assert (await fetch(f"{url}/generate", ASKED))[0] == 200


async def a_rolling_restart_fails_nothing(process, url, tokens):
    """Clients of streams and of whole answers notice nothing of a SIGUSR1."""
    before = await metrics(url)
    stop, counts = anyio.Event(), {"whole": 0, "streams": 0}

    async def ask():
        while not stop.is_set():
            status, body = await fetch(f"{url}/generate", {**ASKED, "max_tokens": tokens, "ignore_eos": True}, timeout=PATIENCE)
            assert status == 200, body
            counts["whole"] += 1

    async def stream():
        while not stop.is_set():
            async with Streams(url) as streams:
                told = await read_to_end_of_answer(await streams.begin(max_tokens=tokens))
            assert b"error" not in told
            assert told.count(b"[DONE]") == 1
            counts["streams"] += 1

    async with always_ready(url), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
            tasks.start_soon(stream)
        await until(url, lambda found: found["engine"]["running"] >= 4)
        process.send_signal(signal.SIGUSR1)
        await until(url, lambda found: found["restarts"] == before["restarts"] + 2 and all(up(found)), 2 * RESTART)
        stop.set()
    assert all(counts.values())
    after = await until(url, lambda found: found["open"] == 0)
    assert after["requests"].get("failed", 0) == before["requests"].get("failed", 0)
    assert after["requests"]["completed"] - before["requests"]["completed"] == sum(counts.values())


@asynccontextmanager
async def always_ready(url):
    """Check that the server is ready all the time in this context."""
    seen = []

    async def look():
        while True:
            seen.append((await fetch(f"{url}/health/ready"))[0])
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        yield
        tasks.cancel_scope.cancel()
    assert set(seen) == {200}
