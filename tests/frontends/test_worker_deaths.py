"""Workers that share a core survive its deaths. A stand-in takes the place of vLLM's core.

tests/vllm has the same on vLLM.
"""

import sys

import psutil
from program_support import Streams, program
from support import worker_deaths

MODULE = (sys.executable, "-m", "tests.support.core_program", "--port", "0")
ENGINE = ("--engine", "core", "--model", "sim", "--engine-arg", "step_seconds=0.01")


def serving(tmp_path, *arguments):
    return program(tmp_path, "--workers", "2", "--max-wait", "60", *arguments, module=MODULE, engine=ENGINE)


def core_of(process):
    (core,) = [child for child in psutil.Process(process.pid).children() if any(word.endswith("core.py") for word in child.cmdline())]
    return core


async def test_a_dead_worker_s_requests_are_aborted_in_the_core(tmp_path):
    # Answers that last longer than the test.
    long = ("--engine-arg", "max_model_len=7000", "--engine-arg", "step_seconds=0.05")
    async with serving(tmp_path, *long) as (process, url, _), Streams(url) as streams:
        await worker_deaths.a_dead_worker_s_requests_are_aborted(process, url, streams, 5000)


async def test_the_core_is_started_again_for_all_workers_and_nothing_is_lost(tmp_path):
    async with serving(tmp_path, "--stall-timeout", "5", "--drain-timeout", "60") as (process, url, _):
        await worker_deaths.a_restarted_core_serves_the_same_workers(process, url, core_of)


async def test_the_core_s_death_fails_every_stream_and_ends_the_program_without_restarts(tmp_path):
    async with serving(tmp_path, "--restarts", "0") as (process, url, lines):
        await worker_deaths.a_core_without_restart_fails_all_and_ends_the_program(process, url, core_of)
    assert any("failed" in line for line in lines)
