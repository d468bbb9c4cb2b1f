"""Two real engines in one process: each has its own cores, processes and series, and dies alone."""

import os
from typing import Any

import anyio
import psutil
import pytest
from prometheus_client import REGISTRY
from support.processes import gone

from llmserve import EngineDead, GenerationRequest, Sampling
from llmserve.engines import create_engines
from llmserve.engines.vllm.placement import CORES, place

pytestmark = pytest.mark.nightly

# Bound of waits that an event ends: a busy machine takes longer, and a hang does not end.
PATIENCE = 300
TOKENS = 8


class Answer:
    """A sink that waits for the end."""

    def __init__(self):
        self.tokens, self.error, self.over = [], None, anyio.Event()

    def put(self, delta, timings=None):
        self.tokens += delta.token_ids
        if delta.finish_reason is not None:
            self.over.set()

    def fail(self, error):
        self.error = error
        self.over.set()


async def ask(engine, name, **sampling):
    request = GenerationRequest("The capital of France is", sampling=Sampling(temperature=0, ignore_eos=True, **sampling))
    answer = Answer()
    await engine.submit(name, await engine.tokenize(request), request.sampling, 0, answer)
    return answer


async def tokens_of(engine, name):
    answer = await ask(engine, name, max_tokens=TOKENS)
    with anyio.fail_after(PATIENCE):
        await answer.over.wait()
    assert answer.error is None
    return answer.tokens


def generated(engine):
    found = [one for family in REGISTRY.collect() for one in family.samples if one.name == "vllm:generation_tokens_total"]
    (value,) = [one.value for one in found if one.labels["engine"] == engine]
    return value


def bound_to(core):
    """Return the sets of CPUs that threads of the core's worker may use."""
    return [os.sched_getaffinity(thread.id) for child in core.children() for thread in child.threads()]


async def serve(engine, deaths, *, task_status):
    """Run the engine, and note its death."""
    try:
        await engine.run(task_status=task_status)
    except EngineDead as error:
        deaths[engine] = error


async def test_two_engines_serve_side_by_side_and_die_alone(monkeypatch):
    monkeypatch.delenv(CORES, raising=False)
    engines: list[Any] = [*create_engines("vllm", "bundled", {}, 2)]
    deaths: dict[Any, EngineDead] = {}
    first, second = engines
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as starts:
            for engine in engines:
                starts.start_soon(tasks.start, serve, engine, deaths)
        cores = [psutil.Process(pid) for engine in engines for pid in engine.processes()]
        assert len(cores) == 2
        family = [*cores, *(child for core in cores for child in core.children(recursive=True))]
        for core, placement in zip(cores, place({}, 2), strict=True):
            assert set(map(int, placement.environment[CORES].split(","))) in bound_to(core)
        assert CORES not in os.environ
        expected = await tokens_of(first, "before")
        assert await tokens_of(second, "one") == expected
        assert await tokens_of(second, "two") == expected
        # Each engine counts its own tokens.
        with anyio.fail_after(PATIENCE):
            while (generated("0"), generated("1")) != (TOKENS, 2 * TOKENS):
                await anyio.sleep(0.01)
        lost, kept = await ask(first, "lost", max_tokens=1500), await ask(second, "kept", max_tokens=200)
        cores[0].kill()
        with anyio.fail_after(PATIENCE):
            await lost.over.wait()
            while first not in deaths:
                await anyio.sleep(0.01)
            await kept.over.wait()
        assert isinstance(lost.error, EngineDead)
        assert (kept.error, len(kept.tokens)) == (None, 200)
        assert second not in deaths
        assert await tokens_of(second, "after") == expected
        tasks.cancel_scope.cancel()
    await gone(*family)
