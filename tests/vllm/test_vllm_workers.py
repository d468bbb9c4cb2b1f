"""Several workers of one real engine core survive the deaths of workers and of the core."""

import signal
import urllib.request

import anyio
import psutil
import pytest
from program_support import Streams, connections, fetch, metrics, program, read_to_end_of_answer, until, workers_of
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support import worker_deaths
from support.processes import gone
from support.worker_deaths import ASKED, PATIENCE


def serving(*arguments):
    return program(None, "--workers", "2", *arguments, engine=("--model", "bundled", "--max-wait", "60"))


def core_of(process):
    (core,) = [child for child in psutil.Process(process.pid).children() if "EngineCore" in " ".join(child.cmdline())]
    return core


async def both_serve(process, url):
    """Wait until two workers have answered."""
    with anyio.fail_after(300):
        served = set()
        while len(served & set(workers_of(process))) < 2:
            async with Streams(url) as streams:
                for _ in range(2):
                    assert b"[DONE]" in await read_to_end_of_answer(await streams.begin(max_tokens=2))
                served |= {worker for worker in workers_of(process) if connections(worker)}


async def series(url):
    def get():
        asked = urllib.request.Request(f"{url}/metrics", headers={"Accept": "text/plain"})
        with urllib.request.urlopen(asked, timeout=PATIENCE) as response:
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
            await worker_deaths.a_dead_worker_s_requests_are_aborted(process, url, streams, 1000)
            await streams.end()
        # The successor uses a client number that the core has had from its start. Until it is up,
        # the other worker answers alone.
        await both_serve(process, url)
        await until(url, lambda found: found["open"] == 0)
        assert (await metrics(url))["requests"]["completed"] >= 4
        core = core_of(process)
        engine = [core, *core.children(recursive=True)]
        async with Streams(url) as streams:
            stream = await streams.begin(max_tokens=60)
            process.send_signal(signal.SIGTERM)
            assert b"[DONE]" in await read_to_end_of_answer(stream)
        with anyio.fail_after(PATIENCE):
            assert await process.wait() == 0
        assert not any(one.is_running() for one in engine)


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_the_core_is_started_again_for_all_workers_and_nothing_is_lost():
    async with serving("--stall-timeout", "8", "--drain-timeout", "120") as (process, url, _):
        await worker_deaths.a_restarted_core_serves_the_same_workers(process, url, core_of)


@pytest.mark.nightly
async def test_they_share_two_cores_that_are_one_engine():
    """The requests of both workers go to both cores, those of a dead worker are aborted, and its successor serves."""
    async with serving("--engine-arg", "data_parallel_size=2", "--engine-arg", "max_num_seqs=4") as (process, url, _):
        cores = [child for child in psutil.Process(process.pid).children() if "EngineCore" in " ".join(child.cmdline())]
        assert len(cores) == 2
        family = [one for core in cores for one in (core, *core.children(recursive=True))]
        assert (await metrics(url))["admission"]["limit"] >= 8
        for _ in range(4):
            status, body = await fetch(f"{url}/v1/completions", ASKED)
            assert status == 200
            assert b"Paris" in body
        async with Streams(url) as streams:
            for number in range(8):
                await streams.begin(1900, prompt=str(number))
            await until(url, lambda found: found["admission"]["running"] == 8)
            first = workers_of(process)[0]
            lost = streams.held_by(first)
            assert 0 < lost < 8
            first.kill()
            await until(url, lambda found: found["admission"]["running"] == 8 - lost)
            # These fit only where the dead worker's requests were: those that are left are as long.
            for _ in range(lost):
                assert b"[DONE]" in await read_to_end_of_answer(await streams.begin(max_tokens=4))
            assert (await metrics(url))["admission"]["running"] == 8 - lost
            await streams.end()
        await until(url, lambda found: found["open"] == 0)
        await both_serve(process, url)
        # The cores die and restart together.
        cores[1].kill()
        await gone(*family)
        with anyio.fail_after(300):
            while (found := await metrics(url))["restarts"] != 1 or found["state"] != "ready":
                await anyio.sleep(0.1)
        await both_serve(process, url)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE):
            assert await process.wait() == 0
        await gone(*family)


@pytest.mark.nightly
async def test_the_core_s_death_fails_every_stream_and_ends_the_program_without_restarts():
    async with serving("--restarts", "0") as (process, url, lines):
        await worker_deaths.a_core_without_restart_fails_all_and_ends_the_program(process, url, core_of)
    assert any("failed" in line for line in lines)
