"""Several workers of one real engine core survive the deaths of workers and of the core."""

import json
import signal
import urllib.request

import anyio
import psutil
import pytest
from program_support import Streams, connections, fetch, metrics, program, read_to_end_of_answer, until, workers_of
from prometheus_client.parser import text_string_to_metric_families as parse_text

ENDLESS = 1500
ASKED = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


def serving(*arguments):
    return program(None, "--workers", "2", *arguments, engine=("--model", "bundled", "--max-wait", "60"))


def engine_of(process):
    """Return the core and its child processes."""
    (core,) = [child for child in psutil.Process(process.pid).children() if "EngineCore" in " ".join(child.cmdline())]
    return [core, *core.children(recursive=True)]


async def series(url):
    def get():
        with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers={"Accept": "text/plain"}), timeout=20) as response:
            return response.read().decode()

    families = parse_text(await anyio.to_thread.run_sync(get))
    counted = ("_total", "_count")
    return {family.name: sum(one.value for one in family.samples if one.name.endswith(counted)) for family in families}


async def test_they_share_the_engine_and_a_dead_one_s_requests_are_aborted_in_it():
    async with serving() as (process, url, lines):
        assert any("2 workers" in line for line in lines)
        for _ in range(4):
            status, body = await fetch(f"{url}/v1/completions", ASKED)
            assert status == 200
            assert b"Paris" in body
        found = await series(url)
        assert found["vllm:generation_tokens"] == found["llmserve_completion_tokens"]
        assert found["vllm:inter_token_latency_seconds"] == found["llmserve_completion_tokens"] - 4
        async with Streams(url) as streams:
            for _ in range(4):
                await streams.begin(max_tokens=ENDLESS)
            await until(url, lambda found: found["engine"]["running"] == 4)
            workers_of(process)[0].kill()
            # The dead worker's slots are free at once, and the engine has stopped working on its
            # requests.
            await until(url, lambda found: 0 < found["admission"]["running"] == found["engine"]["running"] < 4)
            await streams.end()
        # The successor uses a client number that the core has had from its start. Until it is up,
        # the other worker answers alone.
        with anyio.fail_after(60):
            served = set()
            while len(served & set(workers_of(process))) < 2:
                async with Streams(url) as streams:
                    for _ in range(2):
                        assert b"[DONE]" in await read_to_end_of_answer(await streams.begin(max_tokens=2))
                    served |= {worker for worker in workers_of(process) if connections(worker)}
        await until(url, lambda found: found["open"] == 0)
        assert (await metrics(url))["requests"]["completed"] >= 4
        engine = engine_of(process)
        async with Streams(url) as streams:
            stream = await streams.begin(max_tokens=60)
            process.send_signal(signal.SIGTERM)
            assert b"[DONE]" in await read_to_end_of_answer(stream)
        with anyio.fail_after(30):
            assert await process.wait() == 0
        assert not any(one.is_running() for one in engine)


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_the_core_is_started_again_for_all_workers_and_nothing_is_lost():
    """One core is killed, the next one hangs, and one is killed before a SIGTERM.

    The server keeps running with the same workers, which both answer as before.
    """
    async with serving("--stall-timeout", "3", "--drain-timeout", "120") as (process, url, _):
        _, expected = await fetch(f"{url}/generate", ASKED)
        workers = workers_of(process)
        for restarts, sent in enumerate([signal.SIGKILL, signal.SIGSTOP], start=1):
            core = engine_of(process)
            await nothing_is_lost_around(url, core[0], sent)
            assert (await metrics(url))["restarts"] == restarts
            assert workers_of(process) == workers
            for _ in range(4):
                status, body = await fetch(f"{url}/generate", ASKED)
                assert status == 200
                assert json.loads(body)["text"] == json.loads(expected)["text"]
            assert not any(one.is_running() for one in core)
        await what_waits_finishes_after_sigterm(process, url)
        with anyio.fail_after(30):
            assert await process.wait() == 0


async def nothing_is_lost_around(url, core, sent):
    """Streams get an error after the signal to their core, and whole answers succeed.

    New clients get an error to retry.
    """
    answers = []

    async def ask():
        answers.append(await fetch(f"{url}/generate", {**ASKED, "max_tokens": 300, "ignore_eos": True}, timeout=120))

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
    assert {json.loads(body)["usage"]["completion_tokens"] for _, body in answers} == {300}
    await until(url, lambda found: found["open"] == 0 and found["admission"]["running"] == 0)


async def what_waits_finishes_after_sigterm(process, url):
    """A regression: workers whose engine was restarting were killed, as if they were idle."""
    answers = []

    async def ask():
        answers.append(await fetch(f"{url}/generate", {"prompt": "x", "max_tokens": 300, "ignore_eos": True}, timeout=150))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
        await until(url, lambda found: found["engine"]["running"] == 4)
        engine_of(process)[0].kill()
        await until(url, lambda found: found["state"] == "restarting")
        process.send_signal(signal.SIGTERM)
    assert [status for status, _ in answers] == [200] * 4


@pytest.mark.nightly
async def test_the_core_s_death_fails_every_stream_and_ends_the_program_without_restarts():
    async with serving("--restarts", "0") as (process, url, lines):
        async with Streams(url) as streams:
            for _ in range(4):
                await streams.begin(max_tokens=ENDLESS)
            for one in engine_of(process):
                one.kill()
            for stream in streams.open:
                assert b"engine_dead" in await read_to_end_of_answer(stream)
        with anyio.fail_after(30):
            assert await process.wait() == 1
    assert any("failed" in line for line in lines)
