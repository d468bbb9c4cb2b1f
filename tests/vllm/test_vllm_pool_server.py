"""A server with two real engines: one dies, hangs or restarts, and the other serves on."""

import signal

import psutil
import pytest
from program_support import program
from support import pool_deaths

# Few enough that one engine completes all answers while the other one is being restarted.
TOKENS = 40


def serving(*arguments):
    return program(None, "--engines", "2", *arguments, engine=("--model", "bundled", "--max-wait", "120"))


def cores_of(process):
    return [child for child in psutil.Process(process.pid).children() if "EngineCore" in " ".join(child.cmdline())]


@pytest.mark.timeout(900)
async def test_the_death_of_one_core_ends_its_streams_only():
    async with serving("--workers", "2") as (process, url, _):
        await pool_deaths.one_engine_dies(process, url, cores_of, signal.SIGKILL, TOKENS)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_one_core_dies_then_hangs_and_then_both_are_restarted(workers):
    async with serving("--workers", workers, "--stall-timeout", "8") as (process, url, _):
        await pool_deaths.one_engine_dies(process, url, cores_of, signal.SIGKILL, TOKENS)
        # Other programs may have slowed one engine down by now.
        await pool_deaths.one_engine_dies(process, url, cores_of, signal.SIGSTOP, TOKENS, equal=False)
        await pool_deaths.a_rolling_restart_fails_nothing(process, url, 20)
