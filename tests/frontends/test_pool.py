"""A server with several engines, with and without workers. A stand-in takes the place of vLLM's cores.

tests/vllm has the same on vLLM.
"""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from program_support import PATIENCE, fetch, metrics, program, until, workers_of
from support import pool_deaths

from frontends.program import progress
from frontends.workers.engine_core import SharedCore
from frontends.workers.engine_host import next_home
from llmserve import EngineDead, EngineStatistics, State
from llmserve.engines.vllm.scheduling.step_limit import VARIABLE
from llmserve.state import EngineState, ManagerStatistics

MODULE = (sys.executable, "-m", "tests.support.core_program", "--port", "0")
# A start takes longer than the answers of the tests.
ENGINE = ("--engine", "core", "--model", "sim", "--engine-arg", "step_seconds=0.01", "--engine-arg", "start_seconds=6.0")


def cores_of(process):
    return [child for child in psutil.Process(process.pid).children() if any(word.endswith("core.py") for word in child.cmdline())]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_the_death_of_one_engine_ends_its_streams_only(tmp_path, sent):
    arguments = ("--engines", "2", "--workers", "2", "--stall-timeout", "5", "--max-wait", "60")
    async with program(tmp_path, *arguments, module=MODULE, engine=ENGINE) as (process, url, _):
        await pool_deaths.one_engine_dies(process, url, cores_of, sent, tokens=120)


@pytest.mark.parametrize(
    ("workers", "engines", "homes"), [(4, 2, [0, 1, 0, 1]), (4, 1, [None] * 4), (3, 2, [None] * 3), (2, 4, [None] * 2)]
)
def test_each_engine_is_the_home_of_equally_many_workers(workers, engines, homes):
    found: list[int | None] = []
    for _ in range(workers):
        found.append(next_home(found, workers, engines))
    assert found == homes
    # A worker that replaces another one gets its home.
    assert next_home(found[1:], workers, engines) == homes[0]


async def test_workers_are_ready_when_all_engines_are_up(tmp_path):
    """A regression: with one engine up the server was ready, and ended when the other one could not start."""
    arguments = ("--engines", "2", "--workers", "2")
    async with program(tmp_path, *arguments, until="loading", module=MODULE, engine=(*ENGINE[:-1], "start_seconds=2")) as (process, url, _):
        with anyio.fail_after(PATIENCE):
            while len(cores := cores_of(process)) < 2:
                await anyio.sleep(0.01)
            cores[0].suspend()
            while b"engine " not in (line := await process.stderr.readline()):
                assert line
            assert (await fetch(f"{url}/health/ready"))[0] == 503
            cores[0].resume()
            while b"  ready  " not in (line := await process.stderr.readline()):
                assert line
            assert (await fetch(f"{url}/health/ready"))[0] == 200


async def test_a_rolling_restart_of_workers_fails_nothing(tmp_path):
    engine = (*ENGINE[:-1], "start_seconds=0.5")
    async with program(tmp_path, "--engines", "2", "--workers", "2", module=MODULE, engine=engine) as (process, url, lines):
        await pool_deaths.a_rolling_restart_fails_nothing(process, url, tokens=30)
    assert sum("on request" in line for line in lines) == 2
    assert not any("died" in line or "down" in line for line in lines)


async def test_a_rolling_restart_of_one_process_fails_nothing(tmp_path):
    engine = ("--engine", "simulated", "--model", "sim", "--engine-arg", "start_seconds=0.5")
    async with program(tmp_path, "--engines", "2", engine=engine) as (process, url, lines):
        await pool_deaths.a_rolling_restart_fails_nothing(process, url, tokens=30)
    assert sum("on request" in line for line in lines) == 2
    assert not any("died" in line or "is down" in line for line in lines)


def engine(*, up=True, **more):
    return EngineState(up=up, restarts=0, engine=EngineStatistics(), **more)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ((State.READY, engine(), engine()), (State.READY, engine(up=False), engine()), "0 is down and is being restarted; 1 of 2"),
        ((State.READY, engine(), engine()), (State.READY, engine(up=False, failed=True), engine()), "0 is down and will not"),
        ((State.READY, engine(up=False), engine()), (State.READY, engine(up=False, failed=True), engine()), "0 is down and will not"),
        ((State.READY, engine(), engine()), (State.READY, engine(), engine(up=False, drains=True)), "engine 1 on request"),
        ((State.READY, engine(up=False, drains=True), engine()), (State.READY, engine(), engine()), "0 is up again; 2 of 2"),
        ((State.READY, engine()), (State.RESTARTING, engine(up=False)), "the engine died"),
        ((State.READY, engine()), (State.RESTARTING, engine(up=False, drains=True)), "engine 0 on request"),
        ((State.RESTARTING, engine(up=False, drains=True)), (State.READY, engine()), "ready     again"),
    ],
)
def test_each_change_of_an_engine_is_logged_once(before, now, said, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    both = [
        ManagerStatistics(state=state, open=0, tokenizing=0, admission=None, engine=EngineStatistics(), engines=tuple(engines))
        for state, *engines in (before, now)
    ]
    progress.say_changes(*both)
    progress.say_changes(both[1], both[1])
    assert len(lines) == 1
    assert said in lines[0]


async def test_an_engine_that_is_not_restarted_leaves_the_server_ready(tmp_path):
    arguments = ("--engines", "2", "--workers", "2", "--restarts", "0", "--max-running", "2", "--max-waiting", "1")
    engine = (*ENGINE[:-1], "start_seconds=0.1")
    async with program(tmp_path, *arguments, module=MODULE, engine=engine) as (process, url, lines):
        # The workers know the slots of both engines.
        assert (await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 2, "n": 4}))[0] == 200
        core, _ = cores_of(process)
        core.kill()
        await until(url, lambda found: sum(pool_deaths.up(found)) == 1)
        # Signals that are sent to all processes of a service restart the engines, and nothing else.
        for worker in workers_of(process):
            worker.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGUSR1)
        found = await until(url, lambda found: found["restarts"] == 1 and sum(pool_deaths.up(found)) == 1)
        assert found["admission"]["limit"] == 2
        assert (await fetch(f"{url}/health/ready"))[0] == 200
        assert (await fetch(f"{url}/generate", {"prompt": "hi", "max_tokens": 2}))[0] == 200
    said = [line for line in lines if "engine 0" in line or "engine 1" in line]
    assert sum("is down and will not be restarted; 1 of 2 engines serve" in line for line in said) == 1
    assert not any("is being restarted" in line for line in said)
    assert not any("worker" in line and "exited" in line for line in lines)


async def test_the_death_of_a_core_is_reported_before_its_remains_are_removed():
    told, removed = anyio.Event(), threading.Event()

    class Core:
        alive = True

        def configure(self, check):
            pass

        launch = configure

        def check(self):
            if not self.alive:
                raise EngineDead("killed")

        def kill(self):
            pass

        def stop(self):
            assert removed.wait(PATIENCE)

    core: Any = Core()
    calls: Any = {"open": lambda: None, "joined": lambda: True, "steps": lambda: 0, "died": lambda _: told.set()}
    with pytest.raises(ExceptionGroup) as failed:
        async with anyio.create_task_group() as tasks:
            await tasks.start(SharedCore(lambda: core, **calls).run)
            core.alive = False
            with anyio.fail_after(PATIENCE):
                await told.wait()
            removed.set()
    assert failed.group_contains(EngineDead)


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


async def test_the_routes_of_other_clients_answer_with_workers_and_several_engines(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/messages": chat,
        "/v1/responses": {"input": "hi", "max_output_tokens": 3, "temperature": 0},
        "/v1/messages/count_tokens": {"messages": chat["messages"]},
        "/inference/v1/generate": {"token_ids": [104, 105], "sampling_params": {"max_tokens": 3, "temperature": 0}, "request_id": "mine"},
        "/tokenize": {"prompt": "hi", "return_token_strs": True},
        "/v1/completions": {"prompt": "abc", "max_tokens": 1, "truncate_prompt_tokens": 2, "temperature": 0},
    }
    engine = (*ENGINE[:-1], "start_seconds=0.5")
    async with program(tmp_path, "--engines", "2", "--workers", "2", module=MODULE, engine=engine) as (_, url, _):
        for path, body in bodies.items():
            # Each connection goes to the worker with the fewest, so both workers answer.
            answers = [await fetch(url + path, body) for _ in range(4)]
            assert {status for status, _ in answers} == {200}, (path, answers)
            # How much of a prompt is in a cache, and so the usage, differs.
            found = [
                {name: value for name, value in json.loads(text).items() if name not in ("id", "created", "created_at", "usage", "output")}
                for _, text in answers
            ]
            assert found == [found[0]] * 4
        status, body = await fetch(f"{url}/v1/messages", {**chat, "model": "other"})
        assert (status, json.loads(body)["type"]) == (404, "error")


async def test_the_cores_of_workers_get_the_step_size_that_the_slo_allows_also_after_a_death(tmp_path):
    # A step of 512 prompt tokens takes 67 ms more than one without, and some 300 fit the target.
    settings = ("prefill_token_seconds=1.3e-4", "prefix_caching=false", "max_model_len=4096")
    engine = ("--engine", "core", "--model", "sim", *(word for one in settings for word in ("--engine-arg", one)))
    arguments = ("--workers", "2", "--slo-ttft", "30", "--slo-tpot", "0.05")

    def size_in(core):
        return int.from_bytes(Path(core.environ()[VARIABLE]).read_bytes(), "little")

    async with program(tmp_path, *arguments, module=MODULE, engine=engine) as (process, url, _):
        (core,) = cores_of(process)
        body = {"model": "sim", "prompt": "x" * 300, "max_tokens": 24, "ignore_eos": True}
        with anyio.fail_after(PATIENCE):
            while size_in(core) not in range(1, 450):
                async with anyio.create_task_group() as tasks:
                    for _ in range(4):
                        tasks.start_soon(fetch, f"{url}/v1/completions", body)
        assert (await metrics(url))["admission"]["step_tokens"] == size_in(core)
        core.kill()
        await until(url, lambda found: found["restarts"] == 1 and found["state"] == "ready")
        (successor,) = cores_of(process)
        assert size_in(successor) in range(1, 450)
