"""Deaths of the core that several workers share, on a stand-in core and on vLLM's.

`core_of(process)` returns the core's process. `begun` is the number of tokens of answers that are
still being generated when their core dies.
"""

import json
import signal

import anyio
from program_support import PATIENCE, Streams, fetch, metrics, read_to_end_of_answer, until, workers_of

ENDLESS = 1500
ASKED = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


async def a_dead_worker_s_requests_are_aborted(process, url, streams, max_tokens):
    """The dead worker's slots are free at once, and so are its requests' blocks of the cache.

    The count of running requests shows only the first: it is capped by the number of open requests.
    Prompts that share no prefix hold most blocks in use, so the growth of the other answers is small.
    """
    for number in range(4):
        await streams.begin(max_tokens, prompt=str(number) * 1000)
    before = (await until(url, lambda found: found["engine"]["running"] == 4))["engine"]
    workers_of(process)[0].kill()

    def has_freed(found):
        # The other worker reports the cache when it gets tokens.
        reported = found["engine"]["generation_tokens"] > before["generation_tokens"] + 50
        return reported and found["engine"]["kv_usage"] < 0.9 * before["kv_usage"] and 0 < found["admission"]["running"] < 4

    await until(url, has_freed)


async def a_restarted_core_serves_the_same_workers(process, url, core_of, begun=300):
    """One core is killed, the next one hangs, and one is killed before a SIGTERM."""
    _, expected = await fetch(f"{url}/generate", ASKED)
    workers = workers_of(process)
    for restarts, sent in enumerate([signal.SIGKILL, signal.SIGSTOP], start=1):
        core = core_of(process)
        family = [core, *core.children(recursive=True)]
        await nothing_is_lost_around(url, core, sent, begun)
        assert (await metrics(url))["restarts"] == restarts
        assert workers_of(process) == workers
        for _ in range(4):
            status, body = await fetch(f"{url}/generate", ASKED)
            assert status == 200
            assert json.loads(body)["text"] == json.loads(expected)["text"]
        assert not any(one.is_running() for one in family)
    await what_waits_finishes_after_sigterm(process, url, core_of, begun)
    with anyio.fail_after(PATIENCE):
        assert await process.wait() == 0


async def nothing_is_lost_around(url, core, sent, begun):
    """Streams get an error after the signal to their core, and whole answers succeed.

    New clients get an error to retry.
    """
    answers = []

    async def ask():
        answers.append(await fetch(f"{url}/generate", {**ASKED, "max_tokens": begun, "ignore_eos": True}, timeout=120))

    async with Streams(url) as streams, anyio.create_task_group() as tasks:
        for _ in range(4):
            await streams.begin(max_tokens=ENDLESS)
        for _ in range(4):
            tasks.start_soon(ask)
        await until(url, lambda found: found["engine"]["running"] == 8)
        core.send_signal(sent)
        for stream in streams.open:
            told = await read_to_end_of_answer(stream)
            assert told.count(b"engine_restarted") == 1
            assert told.count(b"[DONE]") == 1
        status, refused = await fetch(f"{url}/generate", ASKED)
        assert status == 503
        assert b"restarted" in refused
    assert [status for status, _ in answers] == [200] * 4
    assert {json.loads(body)["usage"]["completion_tokens"] for _, body in answers} == {begun}
    await until(url, lambda found: found["open"] == 0 and found["admission"]["running"] == 0)


async def what_waits_finishes_after_sigterm(process, url, core_of, begun):
    """A regression: workers whose engine was restarting were killed, as if they were idle."""
    answers = []

    async def ask():
        answers.append(await fetch(f"{url}/generate", {"prompt": "x", "max_tokens": begun, "ignore_eos": True}, timeout=150))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
        await until(url, lambda found: found["engine"]["running"] == 4)
        core_of(process).kill()
        await until(url, lambda found: found["state"] == "restarting")
        process.send_signal(signal.SIGTERM)
    assert [status for status, _ in answers] == [200] * 4


async def a_core_without_restart_fails_all_and_ends_the_program(process, url, core_of):
    async with Streams(url) as streams:
        for _ in range(4):
            await streams.begin(max_tokens=ENDLESS)
        core = core_of(process)
        for one in [core, *core.children(recursive=True)]:
            one.kill()
        for stream in streams.open:
            assert b"engine_dead" in await read_to_end_of_answer(stream)
    with anyio.fail_after(PATIENCE):
        assert await process.wait() == 1
