"""The engine contract on real vLLM, and tests of vLLM's own features."""

import gc
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import anyio
import attrs
import psutil
import pytest
from contracts.engine_contract import CollectingSink, EngineContract
from image_files import picture
from quiescence import check_quiescent

from benchmarks.stand_ins.shared_engine import SharedEngine
from llmserve import SLO, ConfigurationError, EngineManager, GenerationRequest, Image, InvalidRequest, ManagerConfig, Sampling
from llmserve.engines.vllm.args import GIB, MEMORY_NODES, build_engine_args
from llmserve.engines.vllm.engine import VLLMEngine
from llmserve.observability.metrics import Observers


class TestContract(EngineContract):
    """The whole contract, on the bundled model."""


@pytest.mark.parametrize(
    ("question", "answer"), [("What is the capital of France?", "Paris"), ("Hello", "Hello"), ("Tell me a joke", "joke")]
)
async def test_the_first_questions_of_a_user_get_a_sensible_answer_on_every_processor(manager, question, answer):
    """A regression: a processor's rounding decided between "Paris" and "L'Étoile, la Marseillaise"."""
    messages = [{"role": "user", "content": question}]
    said = await manager.generate(GenerationRequest(messages=messages, sampling=Sampling(temperature=0, max_tokens=40, logprobs=2)))
    assert answer in said.text
    # bfloat16 changes the difference by a quarter of a nat.
    best, second = said.logprobs[0].top[:2]
    assert best.logprob - second.logprob > 0.5


async def test_a_model_of_texts_takes_lists_of_texts_and_no_images(manager):
    assert manager.info.max_images == 0
    whole, pieces = "What is the capital\nof France?", ["What is the capital", {"type": "text", "text": "of France?"}]
    found = [
        await manager.generate([{"role": "user", "content": content}], temperature=0, max_tokens=8, return_prompt_ids=True)
        for content in (whole, pieces)
    ]
    assert found[0].prompt_token_ids == found[1].prompt_token_ids
    with pytest.raises(InvalidRequest, match="the model takes no images"):
        await manager.generate([{"role": "user", "content": [*pieces, Image(picture())]}])


async def test_an_answer_ends_with_its_turn(manager):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = await manager.generate(GenerationRequest(messages=messages, sampling=Sampling(temperature=0)))
    assert answer.finish_reason == "stop"
    # The end token is not part of the text.
    assert "<|im_end|>" not in answer.text


async def test_the_cpu_s_defaults_are_sane(engine):
    info = engine.info
    if info.device != "cpu":
        pytest.skip("on a GPU the defaults are vLLM's own")
    assert (info.max_model_len, info.max_num_seqs) == (2048, 16)
    assert info.kv_cache_tokens == 46_592  # one GiB


@pytest.mark.parametrize(("available", "cache"), [(24 * GIB, GIB), (2 * GIB, GIB // 2)])
async def test_a_small_machine_s_cache_is_a_quarter_of_what_vllm_finds_available(engine, monkeypatch, available, cache):
    """A regression: cached file pages counted as used memory, so installations shrank the cache."""
    from vllm.utils import cpu_resource_utils

    if engine.info.device != "cpu":
        pytest.skip("on a GPU the defaults are vLLM's own")
    found = cpu_resource_utils.MemoryNodeInfo(total_memory=24 * GIB, available_memory=available)
    monkeypatch.setattr(cpu_resource_utils, "get_memory_node_info", lambda node: found)
    assert build_engine_args("nowhere", {}).kv_cache_memory_bytes == cache


@pytest.mark.parametrize("kind", ["data_parallel_size", "tensor_parallel_size"])
@pytest.mark.parametrize(("given", "nodes"), [("", "0,1,0"), ("1,1,1", "1,1,1")])
async def test_workers_share_the_numa_nodes_where_they_are_more(engine, monkeypatch, given, nodes, kind):
    from vllm.utils import cpu_resource_utils

    if engine.info.device != "cpu":
        pytest.skip("on a GPU every core has its own")
    cpus = [cpu_resource_utils.LogicalCPUInfo(id=node, physical_core=node, numa_node=node) for node in (0, 1)]
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: cpus)
    monkeypatch.setenv(MEMORY_NODES, given)
    build_engine_args("nowhere", {kind: 2})
    assert os.environ[MEMORY_NODES] == given
    build_engine_args("nowhere", {kind: 3})
    assert os.environ[MEMORY_NODES] == nodes


async def test_admission_learns_from_vllm_s_own_steps(engine):
    """A second manager on the same engine has an SLO: it checks it, and admits by step times."""
    config = ManagerConfig(slo=SLO(ttft=20.0, tpot=2.0))
    async with EngineManager(SharedEngine(engine), config) as manager, anyio.create_task_group() as tasks:
        for number in range(12):
            request = GenerationRequest("Once upon a time", sampling=Sampling(max_tokens=16, ignore_eos=True), request_id=f"learn {number}")
            tasks.start_soon(manager.generate, request)
    admission = manager.statistics().admission
    assert (admission.policy, admission.counting, admission.admitted) == ("lategate", None, 12)
    assert sum(admission.refused.values()) == 0
    decision = manager.admission.explain("learn 11")[-1]
    assert decision.verdict == "started"
    assert 0.001 < decision.step_seconds < 2.0
    assert manager.metrics()["goodput"]["met"] == 12


async def test_an_slo_that_vllm_cannot_meet_is_an_error_at_the_start(engine):
    with pytest.raises(ConfigurationError, match=r"slo\.tpot is 1e-05 s, but one step takes this engine 0\.\d+ s"):
        async with EngineManager(SharedEngine(engine), ManagerConfig(slo=SLO(tpot=0.00001))):
            pass


async def test_a_terminal_s_interrupt_does_not_reach_the_engine(manager, engine):
    """Ctrl-C goes to all processes of the group; the engine died before its requests finished."""
    (core,) = engine.running_llm.engine_core.resources.engine_manager.processes
    for process in [psutil.Process(core.pid), *psutil.Process(core.pid).children(recursive=True)]:
        process.send_signal(signal.SIGINT)
    answer = await manager.generate("hello", sampling=Sampling(max_tokens=40, ignore_eos=True))
    assert answer.usage.completion_tokens == 40


async def test_a_chat_template_without_end_is_stopped(manager, engine, monkeypatch):
    """CVE-2026-115911: vLLM has a time limit since 0.32, which our path to the tokenizer keeps."""
    renderer = engine.running_llm.renderer
    if not hasattr(renderer, "_render_with_timeout"):
        pytest.skip("before 0.32 vLLM had no time limit")

    async def render(*_, **__):
        await anyio.sleep_forever()

    monkeypatch.setenv("VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT", "0.2")
    monkeypatch.setattr(renderer, "_apply_chat_template_async", render)
    with pytest.raises(InvalidRequest, match="timed out"):
        await manager.generate(GenerationRequest(messages=[{"role": "user", "content": "hi"}]))


async def test_prompts_at_once_are_encoded_as_one_by_one(engine):
    """Compare the encoder with the renderer's own way, which it replaces."""
    requests = [GenerationRequest(text) for text in ("Grüße, 世界!", "a", "The quick brown fox " * 50, "<|im_start|>user")]
    requests += [GenerationRequest(messages=[{"role": "user", "content": text}]) for text in ("hi", "hello")]
    found = [None] * len(requests)

    async def encode(index):
        found[index] = (await engine.tokenize(requests[index])).token_ids

    async with anyio.create_task_group() as tasks:
        for index in range(len(requests)):
            tasks.start_soon(encode, index)
    encoder, engine._renderer.encoder = engine._renderer.encoder, None
    try:
        alone = [(await engine.tokenize(request)).token_ids for request in requests]
    finally:
        engine._renderer.encoder = encoder
    assert encoder is not None
    assert found == alone


async def test_a_full_collection_of_garbage_does_not_stop_the_streams(manager):
    """A regression: a collection went through all objects of vLLM's imports, which took 0.3 s."""
    assert gc.get_freeze_count() > 100_000
    # Only newer objects are left to collect.
    assert len(gc.get_objects()) < gc.get_freeze_count()


async def test_a_cached_prefix_is_counted(manager):
    prefix = "The quick brown fox jumps over the lazy dog. " * 40
    for end in ("One", "Two"):
        answer = await manager.generate(prefix + end, sampling=Sampling(max_tokens=1))
    assert answer.usage.cached_tokens >= 128


async def test_a_tenant_finds_nothing_of_other_tenants_in_the_cache(engine):
    """A tenant finds its own prompts in the cache, but none of others or from before isolation."""
    words = "The quick brown fox jumps over the lazy dog. " * 40
    async with EngineManager(SharedEngine(engine), ManagerConfig(isolate_tenants=True)) as manager:
        cached = {}
        for tenant in ("alice", "bob", "alice", "bob", "tenant/with a slash" * 3):
            request = GenerationRequest(words, sampling=Sampling(max_tokens=1), tenant=tenant)
            cached.setdefault(tenant, []).append((await manager.generate(request)).usage.cached_tokens)
    assert [found[0] for found in cached.values()] == [0, 0, 0]
    assert min(cached["alice"][1], cached["bob"][1]) >= 128


async def test_extreme_neighbours_do_not_change_a_greedy_answer(manager):
    """Row P17: the largest requests of others do not change an answer in the same batch."""
    mine = GenerationRequest("The capital of France is", sampling=Sampling(max_tokens=12, temperature=0.0, seed=1))
    alone = (await manager.generate(mine)).token_ids
    extremes = (
        Sampling(max_tokens=12, temperature=2.0, top_k=0),
        Sampling(max_tokens=12, presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=100.0),
        Sampling(max_tokens=12, repetition_penalty=0.01, min_p=1.0),
        Sampling(max_tokens=12, min_tokens=12, stop_token_ids=tuple(range(64))),
        Sampling(max_tokens=12, logprobs=20, prompt_logprobs=20, top_p=1e-6),
        Sampling(max_tokens=12, ignore_eos=True, stop=("a", "e", "i", "o")),
    )
    answers = []

    async def again(number):
        answers.append((await manager.generate(attrs.evolve(mine, request_id=f"mine {number}"))).token_ids)

    async with anyio.create_task_group() as tasks:
        for number, sampling in enumerate(extremes * 4):
            tasks.start_soon(manager.generate, GenerationRequest([number + 1, 2, 3], sampling=sampling))
            tasks.start_soon(again, number)
    # Rounding may depend on the batch size where two tokens are equally likely; here none are.
    assert set(answers) == {alone}


async def test_a_prompt_that_fills_the_context_is_answered_with_one_token(manager):
    length = manager.info.max_model_len
    answer = await manager.generate([1] * (length - 1), sampling=Sampling(ignore_eos=True))
    assert answer.usage.completion_tokens == 1
    with pytest.raises(InvalidRequest):
        await manager.generate([1] * length)


async def test_every_stage_is_on_one_clock(manager):
    timelines = []

    class Keep:
        def tokens(self, timeline, count, now):
            pass

        def finished(self, timeline):
            timelines.append(timeline)

    before = manager._open_requests.observer
    manager._open_requests.observer = Observers([before, Keep()])
    try:
        await manager.generate("Once upon a time", sampling=Sampling(max_tokens=8, ignore_eos=True))
    finally:
        manager._open_requests.observer = before
    (line,) = timelines
    stages = [line.arrived, line.tokenized, line.admitted, line.submitted, line.engine_queued, line.engine_scheduled]
    stages += [line.engine_first_token, line.first_token, line.last_token, line.finished]
    assert stages == sorted(stages)


async def test_a_conversation_that_the_template_refuses_is_a_bad_request(manager):
    with pytest.raises(InvalidRequest) as caught:
        await manager.generate(GenerationRequest(messages=[{"content": "no role"}]))
    assert caught.value.param == "messages"


async def test_a_hundred_cancelled_at_random_leave_nothing(manager, engine):
    import random

    rng = random.Random(5)

    async def one(number):
        with anyio.move_on_after(rng.uniform(0, 3)):
            request = GenerationRequest(f"story {number}", sampling=Sampling(max_tokens=400, ignore_eos=True))
            await manager.generate(request)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(one, number)
    check_quiescent(manager)
    sink = CollectingSink()
    await engine.submit("probe", await engine.tokenize(GenerationRequest("x")), Sampling(max_tokens=1), 0, sink)
    await sink.ended.wait()
    # What the engine core itself reports after its next step.
    last = engine._steps.statistics
    assert (last.running, last.waiting, last.kv_usage) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_num_seq": 4}, "unknown engine argument 'max_num_seq'; did you mean 'max_num_seqs'"),
        ({"max_model_len": -5}, "max_model_len"),
        ({"dtype": "float3"}, "float3"),
    ],
)
async def test_a_wrong_engine_argument_is_named(args, message):
    with pytest.raises(ConfigurationError, match=message):
        async with EngineManager.open("bundled", engine_args=args):
            pytest.fail("it started")


def test_on_trio_it_says_so():
    async def main():
        async with EngineManager(VLLMEngine("bundled")):
            pytest.fail("it started")

    with pytest.raises(ConfigurationError, match="needs asyncio"):
        # In a separate thread, because this one has the session's asyncio loop.
        with ThreadPoolExecutor(1) as threads:
            threads.submit(lambda: anyio.run(main, backend="trio")).result()
