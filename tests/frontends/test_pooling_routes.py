"""The routes for vectors: the official client, wrong bodies, limits, and requests that end early."""

import base64
import json
from array import array
from typing import Any

import anyio
import msgspec
import pytest
from contracts.embedding_contract import TEXT
from contracts.openai_embeddings_contract import OpenAIEmbeddingsContract
from http_support import running_server
from quiescence import check_quiescent

from frontends.pooling.answers import ClassesAnswer, EmbeddingsAnswer, PooledAnswer, RerankAnswer, ScoreAnswer
from llmserve import AdmissionConfig, GenerationRequest, ManagerConfig, TenantLimits, TenantTable
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine

BASE: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "hi"},
    "/pooling": {"input": "hi"},
    "/classify": {"input": "hi"},
    "/score": {"queries": "hi", "documents": ["a", "b"]},
    "/rerank": {"query": "hi", "documents": ["a", "b"]},
}


@pytest.fixture
def anyio_backend():
    return "asyncio"


class TestOpenAI(OpenAIEmbeddingsContract):
    @pytest.fixture
    async def server(self):
        async with running_server(tasks=["embed"]) as server:
            yield server


async def test_formats_and_dimensions_of_a_vector():
    async with running_server(tasks=["embed"]) as server:
        numbers, text, short = [
            (await server.post("/v1/embeddings", {"input": TEXT, **more}))[1]["data"][0]["embedding"]
            for more in ({}, {"encoding_format": "base64"}, {"dimensions": 5})
        ]
        assert array("f", base64.b64decode(text)).tolist() == numbers
        assert (len(numbers), len(short)) == (64, 5)


@pytest.mark.parametrize(
    ("tasks", "path", "shape"),
    [
        (["embed"], "/v1/embeddings", EmbeddingsAnswer),
        (["embed"], "/pooling", PooledAnswer),
        (["classify"], "/pooling", PooledAnswer),
        (["embed"], "/score", ScoreAnswer),
        (["embed"], "/rerank", RerankAnswer),
        (["classify"], "/classify", ClassesAnswer),
        (["classify"], "/score", ScoreAnswer),
        (["classify"], "/rerank", RerankAnswer),
    ],
)
async def test_answers_have_the_documented_types(tasks, path, shape):
    async with running_server(tasks=tasks) as server:
        status, answer, _ = await server.post(path, BASE[path])
        assert status == 200, answer
        assert msgspec.json.decode(msgspec.json.encode(msgspec.convert(answer, shape))) == answer


async def test_a_classifier_names_the_likeliest_class():
    async with running_server(tasks=["classify"], labels=["no", "yes"]) as server:
        _, answer, _ = await server.post("/classify", {"input": [TEXT, "zz"]})
        for item in answer["data"]:
            assert sum(item["probs"]) == pytest.approx(1)
            assert item["label"] == ("no", "yes")[item["probs"].index(max(item["probs"]))]
            assert item["num_classes"] == 2
        # Two classes have no single score.
        status, answer, _ = await server.post("/score", BASE["/score"])
        assert (status, answer["error"]["param"]) == (400, "model")


async def test_a_reranker_reads_both_texts_together():
    async with running_server(tasks=["classify"]) as server:
        _, answer, _ = await server.post("/rerank", {"query": TEXT, "documents": ["zzz", TEXT], "return_documents": False})
        assert [item["index"] for item in answer["results"]] == [1, 0]
        assert all("document" not in item for item in answer["results"])
        assert answer["usage"]["prompt_tokens"] == 2 * len(TEXT) + len("zzz") + len(TEXT) + 2


@pytest.mark.parametrize("path", BASE)
async def test_a_model_that_generates_refuses_with_one_error(path):
    async with running_server(tasks=["generate"]) as server:
        status, answer, _ = await server.post(path, BASE[path])
        assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "invalid_request_error", "model")
        assert "the model does not support" in answer["error"]["message"]
        assert "tasks are: generate" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"input": ["a", [1]]}, "input"),
        ("/v1/embeddings", {"input": [1, "a"]}, "input"),
        ("/v1/embeddings", {"input": [-1]}, "input"),
        ("/v1/embeddings", {"input": [10**6]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": [[1]] * 2049}, "input"),
        ("/v1/embeddings", {"input": "x" * 5000}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
        ("/v1/embeddings", {"input": "a", "messages": []}, "messages"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "stream": True}, "stream"),
        ("/pooling", {"input": "a", "task": "token_embed"}, "task"),
        ("/pooling", {"input": "a", "task": "classify"}, "model"),
        ("/score", {"queries": "a"}, "queries"),
        ("/score", {"queries": "a", "text_2": "b"}, "queries"),
        ("/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "queries"),
        ("/score", {"queries": "a", "documents": []}, "documents"),
        ("/score", {"queries": "a", "documents": ["b", ""]}, "documents"),
        ("/score", {"queries": "a", "documents": "b", "max_tokens_per_doc": -1}, "max_tokens_per_doc"),
        ("/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_query": -1}, "max_tokens_per_query"),
        ("/score", {"text_1": "a", "text_2": ["b", "x" * 5000]}, "text_2"),
        ("/score", {"text_1": "x" * 5000, "text_2": "b"}, "text_1"),
        ("/rerank", {"query": "a"}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": [{"image": "b"}]}, "documents"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_held(path, body, param):
    async with running_server(tasks=["embed"]) as server:
        status, answer, _ = await server.post(path, body)
        assert (status, answer["error"]["param"]) == (400, param), answer
        check_quiescent(server.manager)


@pytest.mark.parametrize("path", BASE)
async def test_the_error_for_a_long_text_has_the_words_that_clients_look_for(path):
    async with running_server(tasks=["classify"] if path == "/classify" else ["embed"]) as server:
        name = next(iter(BASE[path]))
        status, answer, _ = await server.post(path, {**BASE[path], name: "x" * 5000})
        assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, name, "context_length_exceeded")
        assert answer["error"]["message"].endswith("Please reduce the length of the input prompt.")


@pytest.mark.parametrize("task", ["embed", "classify"])
@pytest.mark.parametrize(
    ("path", "queries", "documents"),
    [("/score", "queries", "documents"), ("/score", "text_1", "text_2"), ("/rerank", "query", "documents")],
)
async def test_each_text_is_cut_to_its_side_s_limit(task, path, queries, documents):
    """The answer is that for the beginnings of the texts."""
    limits = {"max_tokens_per_query": 3, "max_tokens_per_doc": 5}
    async with running_server(tasks=[task]) as server:

        async def found(query, texts, **more):
            more |= {"return_documents": False} if path == "/rerank" else {}
            status, answer, _ = await server.post(path, {queries: query, documents: texts, **more})
            assert status == 200, answer
            return answer.get("data") or answer["results"], answer["usage"]["prompt_tokens"]

        async def beginning(text, most):
            return await server.manager.detokenize((await server.manager.tokenize(GenerationRequest(text))).token_ids[:most])

        query, texts = TEXT, [TEXT * 2, "hi", TEXT]
        cut = [await beginning(text, 5) for text in texts]
        expected = await found(await beginning(query, 3), cut)
        assert await found(query, texts, **limits) == expected
        # Zero is no limit, and neither is the context.
        whole = await found(query, texts)
        for most in (0, 10**6):
            assert await found(query, texts, max_tokens_per_query=most, max_tokens_per_doc=most) == whole
        assert whole[1] > expected[1]


async def test_an_answer_that_would_be_too_large_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("frontends.answers.vectors.MAX_ELEMENTS", 100)
    async with running_server(tasks=["embed"]) as server:
        status, answer, _ = await server.post("/v1/embeddings", {"input": ["a", "b"]})
        assert (status, answer["error"]["param"]) == (400, "input")
        assert "vectors of 64 elements for at most 1" in answer["error"]["message"]
        assert server.manager.statistics().engine.prompt_tokens == 0


async def test_a_request_has_at_most_as_many_inputs_open_as_the_server_or_the_tenant_may():
    """More inputs than the server could run and queue at once are answered."""
    table = TenantTable(named={"small": TenantLimits(concurrency=1)})
    config = ManagerConfig(admission=AdmissionConfig(max_running=2, max_waiting=0, tenants=table), drain_timeout=1)
    async with running_server(config=config, tasks=["embed"]) as server:
        for user in ("small", "large"):
            status, answer, _ = await server.post("/v1/embeddings", {"input": ["a"] * 50, "user": user})
            assert (status, len(answer["data"])) == (200, 50)


async def test_a_failed_input_fails_the_request_and_cancels_the_others():
    # A prompt takes several steps, so that one is in the engine at the third.
    config = SimulatedConfig(tasks=["embed"], time_scale=0.0, max_num_batched_tokens=32, faults=[Fault(step=3, kind="fail")])
    engine = SimulatedEngine(config, model="sim")
    async with running_server(engine) as server:
        status, answer, _ = await server.post("/v1/embeddings", {"input": [TEXT * 10] * 100})
        assert (status, answer["error"]["code"]) == (500, "engine_error")
        check_quiescent(server.manager)
        assert engine.statistics().prompt_tokens < 100 * 10 * len(TEXT)


async def test_a_client_that_leaves_cancels_its_inputs():
    async with running_server(tasks=["embed"], time_scale=1.0, step_seconds=0.05) as server:
        with anyio.move_on_after(0.3):
            await server.post("/v1/embeddings", {"input": [TEXT] * 2000})
        with anyio.fail_after(60):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)
        check_quiescent(server.manager)
        assert server.manager.metrics()["requests"]["completed"] < 2000


@pytest.mark.parametrize(("step_seconds", "inputs"), [(10.0, 1), (0.05, 100)], ids=["each", "all"])
async def test_a_deadline_is_for_the_whole_answer(step_seconds, inputs):
    """In the second case each vector alone is made in time."""
    config = ManagerConfig(admission=AdmissionConfig(max_running=1), drain_timeout=1)
    async with running_server(config=config, tasks=["embed"], time_scale=1.0, step_seconds=step_seconds) as server:
        status, answer, _ = await server.post("/v1/embeddings", {"input": ["a"] * inputs}, headers={"X-Request-Timeout": "1"})
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")


async def test_the_health_check_asks_a_model_without_answers_for_a_vector():
    from frontends.http.health import check_of

    async with running_server(tasks=["embed"], app_of=lambda manager: {"check": check_of(manager, 60.0)}) as server:
        async with server.session.get("/health/generate") as response:
            assert response.status == 200
        assert server.manager.metrics()["requests"]["completed"] == 1


async def test_the_same_key_gets_the_same_vectors():
    async with running_server(tasks=["embed"]) as server:
        headers = {"Idempotency-Key": "k"}
        (_, first, _), (_, second, told) = [await server.post("/v1/embeddings", {"input": TEXT}, headers=headers) for _ in range(2)]
        assert first == second
        assert told["Idempotent-Replayed"] == "true"


async def test_the_request_log_counts_all_inputs():
    lines = []
    async with running_server(tasks=["embed"], app={"log": lines.append}) as server:
        await server.post("/v1/embeddings", {"input": ["abc", "de"]})
    (line,) = map(json.loads, lines)
    assert line["answer"].startswith("embd-")
    assert line["prompt_tokens"] == 5
