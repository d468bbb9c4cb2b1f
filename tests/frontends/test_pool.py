"""A server with several engines, with and without workers. A stand-in takes the place of vLLM's cores.

tests/vllm has the same on vLLM.
"""

import signal
import sys

import psutil
import pytest
from program_support import fetch, metrics, program
from support import pool_deaths

MODULE = (sys.executable, "-m", "tests.support.core_program", "--port", "0")
# A start takes longer than the answers of the tests.
ENGINE = ("--engine", "core", "--model", "sim", "--engine-arg", "step_seconds=0.01", "--engine-arg", "start_seconds=6.0")


def cores_of(process):
    return [child for child in psutil.Process(process.pid).children() if any(word.endswith("core.py") for word in child.cmdline())]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_the_death_of_one_engine_ends_its_streams_only(tmp_path, sent):
    arguments = ("--engines", "2", "--workers", "2", "--stall-timeout", "1", "--max-wait", "60")
    async with program(tmp_path, *arguments, module=MODULE, engine=ENGINE) as (process, url, _):
        await pool_deaths.one_engine_dies(process, url, cores_of, sent, tokens=120)


async def test_a_rolling_restart_of_workers_fails_nothing(tmp_path):
    engine = (*ENGINE[:-1], "start_seconds=0.5")
    async with program(tmp_path, "--engines", "2", "--workers", "2", module=MODULE, engine=engine) as (process, url, lines):
        await pool_deaths.a_rolling_restart_fails_nothing(process, url, tokens=30)
    assert sum("on request" in line for line in lines) == 2
    assert not any("died" in line or "down" in line for line in lines)


async def test_a_rolling_restart_of_one_process_fails_nothing(tmp_path):
    engine = ("--engine", "simulated", "--model", "sim", "--engine-arg", "start_seconds=0.5")
    async with program(tmp_path, "--engines", "2", engine=engine) as (process, url, _):
        await pool_deaths.a_rolling_restart_fails_nothing(process, url, tokens=30)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_dozens_of_simulated_engines_serve_as_one(tmp_path, workers):
    engine = ("--engine", "simulated", "--model", "sim", "--engine-arg", "max_num_seqs=1")
    async with program(tmp_path, "--engines", "24", "--workers", workers, engine=engine) as (_, url, _):
        for _ in range(3):
            assert (await fetch(f"{url}/generate", {"prompt": "hi", "max_tokens": 3}))[0] == 200
        found = await metrics(url)
        assert found["admission"]["limit"] == 24 * (int(workers) + 1)
        assert found["engine"]["generation_tokens"] == 9
        text = (await fetch(f"{url}/metrics"))[1].decode()
    assert text.count("llmserve_pool_up{") == 24 * int(workers)
