"""The server on the real engine: both contracts, clients that leave, quick errors for bad input."""

import random
import time

import aiohttp
import anyio
import pytest
from contracts.anthropic_contract import AnthropicContract
from contracts.frontend_contract import FrontendContract
from contracts.openai_contract import OpenAIContract
from contracts.responses_contract import ResponsesContract
from http_support import InProcess, OverHTTP

from benchmarks.generator.run import Generator
from benchmarks.targets.http import HTTP
from benchmarks.targets.inprocess import InProcess as LoadInProcess
from benchmarks.targets.server import find_model, open_session, parse_server
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload

# None of these requests needs the model, so none may take long.
BAD_INPUT_SECONDS = 0.25


class TestOpenAI(OpenAIContract):
    """The whole contract, on the bundled model."""


class TestAnthropic(AnthropicContract):
    """The whole contract, on the bundled model."""


class TestResponses(ResponsesContract):
    """The whole contract, on the bundled model."""


class TestInProcess(FrontendContract):
    @pytest.fixture
    def client(self, manager):
        return InProcess(manager)


class TestHTTP(FrontendContract):
    @pytest.fixture
    def client(self, server):
        return OverHTTP(server)


async def test_fifty_clients_that_leave_at_random_are_gone_within_two_seconds(server):
    rng = random.Random(2)

    async def leave(stream, after):
        # As many tokens as the context holds: more than the fastest machine generates before the
        # last client leaves.
        body = {"prompt": "Once upon a time", "ignore_eos": True, "stream": stream, "max_tokens": server.manager.info.max_model_len - 16}
        with pytest.raises((TimeoutError, aiohttp.ClientError)):
            async with aiohttp.ClientSession(server.url) as session:
                async with session.post("/v1/completions", json=body, timeout=aiohttp.ClientTimeout(total=after)) as response:
                    await response.read()

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(leave, bool(number % 2), rng.uniform(0.05, 3))
    with anyio.fail_after(2):
        while server.manager.statistics().open or server.manager.statistics().engine.running:
            await anyio.sleep(0.02)
    statistics = server.manager.statistics()
    assert (statistics.running, statistics.waiting, statistics.engine.waiting) == (0, 0, 0)
    # After one more step, the engine core's own counts are current.
    status, _, _ = await server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1})
    assert status == 200
    last = server.manager.engine._steps.statistics
    assert (last.running, last.kv_usage) == (0, 0.0)


BAD = [
    ("not JSON", b"{", 400, None),
    ("wrong type", {"prompt": 5}, 400, "prompt"),
    ("unknown model", {"prompt": "x", "model": "other"}, 404, "model"),
    ("empty prompt", {"prompt": ""}, 400, "prompt"),
    ("long prompt", {"prompt": "hello " * 10_000}, 400, "prompt"),
    ("endless prompt", {"prompt": "a" * 3_000_000}, 400, "prompt"),
    ("max_tokens 0", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
    ("min_tokens huge", {"prompt": "x", "max_tokens": 10**9, "min_tokens": 10**9}, 400, "min_tokens"),
    ("NaN temperature", b'{"prompt": "x", "temperature": NaN}', 400, "temperature"),
    ("token id out of the vocabulary", {"prompt": [49_152]}, 400, "prompt"),
    ("negative token id", {"prompt": [-1]}, 400, "prompt"),
    ("stop token out of the vocabulary", {"prompt": "x", "stop_token_ids": [49_152]}, 400, "stop_token_ids"),
    ("body too large", b" " * 5_000_000, 413, None),
]


@pytest.mark.parametrize(("body", "status", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_bad_input_is_named_at_once_and_the_next_request_works(server, body, status, param):
    began = time.perf_counter()
    got, answer, _ = await server.post("/v1/completions", body)
    assert time.perf_counter() - began < BAD_INPUT_SECONDS
    assert (got, answer["error"]["param"]) == (status, param)
    assert (await server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}))[0] == 200


@pytest.fixture
async def paused(engine):
    """Make the engine refuse requests until the test ends."""
    from vllm.v1.engine import EngineCoreOutput

    if "error" not in EngineCoreOutput.__struct_fields__:
        pytest.skip("before 0.33, vLLM kept requests that came during a pause, and answered them after it")
    await engine.running_llm.pause_generation(mode="wait", clear_cache=False)
    yield
    await engine.running_llm.resume_generation()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_paused_engine_is_503_and_when_to_come_back(server, paused, stream):
    status, answer, headers = await server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": stream})
    assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "unavailable", "1")


@pytest.mark.parametrize("mode", ["abort", "wait"])
async def test_an_engine_that_goes_on_after_a_pause_answers(server, engine, mode):
    await engine.running_llm.pause_generation(mode=mode)
    await engine.running_llm.resume_generation()
    status, _, _ = await server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})
    assert status == 200


async def test_vllm_s_own_series_stand_beside_ours(server):
    await server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})
    async with server.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
        text = await response.text()
    assert 'vllm:generation_tokens_total{engine="0"' in text
    assert 'llmserve_requests_total{outcome="completed"}' in text


@pytest.mark.parametrize("way", ["in process", "HTTP"])
async def test_the_load_generator_counts_every_token_of_the_real_engine(server, way):
    workload = Workload(prompt=Fixed(32), output=Fixed(12), vocabulary=(1000, 30_000))
    api, model = await find_model(parse_server(server.url), None)
    async with open_session(api) as session:
        target = HTTP(session, api, model) if way == "HTTP" else LoadInProcess(server.manager)
        generator = Generator(target, PointPlan(point=0, label=way, load=Load(concurrency=4), workload=workload, requests=8))
        await generator.run()
    records = generator.measured.records
    assert {record.outcome for record in records} == {"ok"}
    assert all(sum(count for _, count in record.deliveries) == 12 for record in records)
