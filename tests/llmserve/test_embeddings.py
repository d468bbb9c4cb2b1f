"""Embeddings on the simulated engine: the contract, deaths, tenants, admission and wrong arguments."""

from types import SimpleNamespace
from typing import Any

import anyio
import attrs
import pytest
from contracts.embedding_contract import TEXT, EmbeddingContract, together
from quiescence import Audit, AuditedEngine, check_quiescent

from frontends.pooling.fan_out import embed_all
from llmserve import (
    SLO,
    AdmissionConfig,
    ConfigurationError,
    EngineInfo,
    EngineManager,
    EngineRestarted,
    GenerationRequest,
    InvalidRequest,
    ManagerConfig,
    PoolingRequest,
    RestartConfig,
    TenantLimits,
    TenantOverloaded,
    TenantTable,
)
from llmserve.admission import AdmissionController
from llmserve.engine import EnginePrompt
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine
from llmserve.engines.vllm.pooling.tasks import pooling_info
from llmserve.lifecycle.model_limits import truncated
from llmserve.pooling.requests import Pooling, PoolingFields
from llmserve.pooling.vectors import cosine


def config(**more):
    return ManagerConfig(drain_timeout=1, restart=RestartConfig(most=5, first_pause=0.01), **more)


class TestContract(EmbeddingContract):
    @pytest.fixture
    async def manager(self):
        async with EngineManager(SimulatedEngine(SimulatedConfig(tasks=["embed"]))) as manager:
            yield manager


class TestPool(EmbeddingContract):
    """Two engines under one admission."""

    @pytest.fixture
    async def manager(self):
        async with EngineManager([SimulatedEngine(SimulatedConfig(tasks=["embed"])) for _ in range(2)]) as manager:
            yield manager


@pytest.mark.parametrize("most", [0, 3])
async def test_each_request_survives_a_death_or_gets_one_error(most):
    engine = AuditedEngine(SimulatedConfig(faults=[Fault(step=3, kind="die"), Fault(step=5, kind="die")], max_num_seqs=2))
    audit = Audit()
    texts = [f"{number} {TEXT}" for number in range(12)]
    async with EngineManager(engine, attrs.evolve(config(), restart=RestartConfig(most=most, first_pause=0.01)), [audit]) as manager:
        if most:
            found = await together(manager, texts)
            alone = [await manager.embed(text) for text in texts]
            assert [one.data for one in found] == [one.data for one in alone]
            check_quiescent(manager, audit)
            assert engine.lost > 0
        else:
            with pytest.raises(ExceptionGroup) as caught:
                await together(manager, texts)
            assert caught.group_contains(Exception, match="death")


async def test_a_request_that_was_in_three_dying_engines_is_given_up():
    engine = SimulatedEngine(SimulatedConfig(faults=[Fault(step=step, kind="die") for step in (1, 2, 3)]))
    async with EngineManager(engine, config()) as manager:
        with pytest.raises(EngineRestarted):
            await manager.embed(TEXT)


async def test_a_failed_step_is_the_request_s_error():
    engine = SimulatedEngine(SimulatedConfig(max_num_batched_tokens=8, faults=[Fault(step=2, kind="fail")]))
    async with EngineManager(engine, config()) as manager:
        with pytest.raises(Exception, match="scripted failure"):
            await manager.embed(TEXT)
        check_quiescent(manager)


async def test_a_tenant_pays_for_the_prompt_and_for_no_answer():
    table = TenantTable(default=TenantLimits(tokens_per_minute=100))
    async with EngineManager(SimulatedEngine(), config(admission=AdmissionConfig(tenants=table))) as manager:
        await manager.embed("x" * 95, tenant="a")
        with pytest.raises(TenantOverloaded):
            await manager.embed("x" * 95, tenant="a")
        await manager.embed("x" * 95, tenant="b")


async def test_embeddings_teach_nothing_about_the_lengths_of_answers():
    async with EngineManager(SimulatedEngine(), config()) as manager:
        assert isinstance(manager.admission, AdmissionController)
        before = manager.admission.answers.mean()
        await together(manager, [TEXT] * 64)
        assert manager.admission.answers.mean() == before


async def test_an_slo_is_for_the_vector():
    slo = SLO(ttft=1.0, tpot=0.1)
    async with EngineManager(SimulatedEngine(SimulatedConfig(tasks=["embed"])), config(slo=slo)) as manager:
        await together(manager, [TEXT] * 32)
        goodput = manager.metrics()["goodput"]
        assert (goodput["met"], goodput["share"]) == (32, 1.0)
    with pytest.raises(ConfigurationError, match=r"slo.ttft is 0.001 s, but a single request's vector takes this engine"):
        async with EngineManager(SimulatedEngine(SimulatedConfig(tasks=["embed"])), config(slo=SLO(ttft=0.001))):
            pass


async def test_a_model_that_generates_makes_no_vectors():
    async with EngineManager(SimulatedEngine(SimulatedConfig(tasks=["generate"]))) as manager:
        with pytest.raises(InvalidRequest, match=r"does not support embeddings; its tasks are: generate$") as caught:
            await manager.embed(TEXT)
        assert caught.value.param == "model"


async def test_a_classifier_scores_pairs():
    async with EngineManager(SimulatedEngine(SimulatedConfig(tasks=["classify"]))) as manager:
        same, other = [(await manager.embed(TEXT, task="classify", pair=pair)).vector[0] for pair in (TEXT, "zzz")]
        assert 1 >= same > other >= 0


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"task": "score"}, InvalidRequest, "task must be embed or classify"),
        ({"dimensions": 0}, InvalidRequest, "dimensions"),
        ({"pair": "x"}, InvalidRequest, "pair needs the task classify"),
        ({"pair": 1}, TypeError, "pair"),
        ({"activation": "yes"}, TypeError, "activation"),
        ({"max_tokens": 3}, TypeError, "unknown field 'max_tokens'"),
        ({"truncation_side": "middle"}, InvalidRequest, "truncation_side must be left or right or None"),
    ],
)
async def test_wrong_fields_are_named(fields, kind, words):
    async with EngineManager(SimulatedEngine()) as manager:
        with pytest.raises(kind, match=words):
            await manager.embed(TEXT, **fields)


async def test_each_call_takes_its_own_kind_of_request():
    async with EngineManager(SimulatedEngine()) as manager:
        with pytest.raises(TypeError, match="only embed"):
            manager.stream(PoolingRequest("x"))
        other: Any = GenerationRequest("x")
        with pytest.raises(TypeError, match="not a GenerationRequest"):
            await manager.embed(other)
        with pytest.raises(TypeError, match="token must be"):
            await manager.embed("x", other)
        request = PoolingRequest("x", request_id="mine")
        assert (await manager.embed(request)).request_id == "mine"
        assert len(await manager.embed(request, dimensions=3)) == 3


def test_the_fields_are_those_of_a_request():
    inherited = {"prompt", "messages", "sampling", "tools", "template_kwargs", "return_prompt_ids"}
    assert PoolingFields.__annotations__.keys() == attrs.fields_dict(PoolingRequest).keys() - inherited


def test_a_vector_of_zeros_is_like_no_other():
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert cosine([1.0, 1.0], [2.0, 2.0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("side", "most", "kept", "second"),
    [
        ("left", 5, (2, 3, 4, 5, 6), 2),
        ("left", 2, (5, 6), 0),
        ("right", 5, (0, 1, 2, 3, 4), 4),
        ("right", 3, (0, 1, 2), 3),
        (None, 7, None, 4),
    ],
)
def test_the_second_text_of_a_truncated_pair_is_still_known(side, most, kept, second):
    request = PoolingRequest("a", task="classify", pair="b", truncate_prompt_tokens=most, truncation_side=side)
    prompt = EnginePrompt(token_ids=tuple(range(7)), pooling=Pooling(task="classify", second=4))
    info = EngineInfo(name="e", version="1", model="m", max_model_len=9, vocab_size=9, max_num_seqs=9, tasks=("classify",))
    found = truncated(request, prompt, info)
    assert found.token_ids == (kept or prompt.token_ids)
    assert found.pooling is not None
    assert found.pooling.second == second


class ModelConfig:
    """The part of vLLM's that says what a model's vectors are."""

    embedding_size = 4
    is_matryoshka = True
    matryoshka_dimensions: list[int] | None = None
    hf_config = SimpleNamespace(id2label={1: "yes", 0: "no"})


def test_the_tasks_of_a_vllm_model_are_those_that_the_library_knows():
    config: Any = ModelConfig()
    assert pooling_info(config, ["generate", "render"]) == {"tasks": ("generate",)}
    assert pooling_info(config, ["token_embed", "embed"]) == {"tasks": ("embed",), "embedding_size": 4, "dimensions": range(1, 5)}
    config.matryoshka_dimensions = [2, 4]
    assert pooling_info(config, ["embed"])["dimensions"] == (2, 4)
    config.is_matryoshka = False
    assert "dimensions" not in pooling_info(config, ["embed"])
    assert pooling_info(config, ["classify"]) == {"tasks": ("classify",), "labels": ("no", "yes")}
    with pytest.raises(ConfigurationError, match="vLLM reports token_classify, and generate, embed and classify are supported"):
        pooling_info(config, ["token_classify"])


async def test_a_large_request_for_vectors_leaves_its_slots_to_chats_one_by_one():
    """512 texts of one HTTP request, and chats of the same tenant that arrive while they run."""
    requests = [PoolingRequest("word " * (1 + number % 97)) for number in range(512)]
    admission = AdmissionConfig(max_running=8, max_waiting=16)
    waits, took = [], []

    async def chat(manager):
        timelines = []
        await manager.generate("hello", max_tokens=16, ignore_eos=True, on_arrival=timelines.append)
        waits.append(timelines[0].admitted - timelines[0].arrived)

    async def batch(manager):
        began = anyio.current_time()
        await embed_all(manager, [attrs.evolve(one, request_id=f"{began} {one.request_id}") for one in requests])
        took.append(anyio.current_time() - began)

    async with EngineManager(SimulatedEngine(SimulatedConfig(prefix_caching=False)), ManagerConfig(admission=admission)) as manager:
        await batch(manager)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batch, manager)
            for _ in range(20):
                await anyio.sleep(took[0] / 20)
                tasks.start_soon(chat, manager)
        check_quiescent(manager)
    alone, beside = took
    # A chat waits for the next slot, of which there are hundreds, and the texts still get theirs.
    assert max(waits) < alone / 20
    assert beside < 1.5 * alone


async def test_neither_embeddings_nor_chats_starve():
    """512 texts of mixed lengths and 64 answers, offered at once to one engine with one admission."""
    finished = {}

    async def one(name, work):
        await work
        finished[name] = anyio.current_time()

    admission = AdmissionConfig(max_running=16, max_waiting=1000)
    async with EngineManager(SimulatedEngine(), ManagerConfig(admission=admission)) as manager:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for number in range(512):
                work = manager.embed("word " * (1 + number % 97), tenant="embeddings")
                tasks.start_soon(one, ("embedding", number), work)
                if number % 8 == 0:
                    tasks.start_soon(one, ("chat", number), manager.generate("hello", max_tokens=16, ignore_eos=True, tenant="chats"))
        ends = {
            kind: sorted(time - began for (one_kind, _), time in finished.items() if one_kind == kind) for kind in ("chat", "embedding")
        }
        whole = max(finished.values()) - began
    assert {kind: len(times) for kind, times in ends.items()} == {"chat": 64, "embedding": 512}
    # Neither kind waits for the whole of the other: while both are there, both make progress.
    assert ends["embedding"][64] < ends["chat"][-1]
    assert ends["chat"][8] < whole / 2
    check_quiescent(manager)
