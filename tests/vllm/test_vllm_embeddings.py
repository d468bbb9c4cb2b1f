"""Embeddings, scores and classes on real vLLM: the contract, and the models' own libraries.

One engine has the bundled embedding model, and another one a classifier with random weights.
"""

import math
import os
import signal

import anyio
import pytest
from contracts.embedding_contract import CLOSE, EmbeddingContract, together
from contracts.openai_embeddings_contract import OpenAIEmbeddingsContract
from http_support import running_server
from quiescence import check_quiescent
from vllm_classifier_files import write_classifier

from llmserve import AdmissionConfig, EngineManager, InvalidRequest, ManagerConfig
from llmserve.engines.vllm.engine import VLLMEngine
from llmserve.models import resolve
from llmserve.pooling.vectors import cosine

# The largest distance of a vector from the library's.
DISTANCE = 1e-2
TEXTS = [
    "The capital of France is Paris.",
    "Grüße, 世界! 🙂",
    "x",
    "A queue holds back requests while the engine is full. " * 12,
    *("word " * count for count in (1, 5, 50, 200, 400)),
]


@pytest.fixture(scope="module")
async def embedding_server():
    async with running_server(VLLMEngine("bundled-embedding"), ManagerConfig(drain_timeout=5)) as server:
        yield server


@pytest.fixture(scope="module")
async def classifier_server(tmp_path_factory):
    folder = write_classifier(tmp_path_factory.mktemp("classifier"), labels=("no", "perhaps", "yes"))
    async with running_server(VLLMEngine(str(folder)), ManagerConfig(drain_timeout=5)) as server:
        yield server


@pytest.fixture(scope="module")
async def reranker_server(tmp_path_factory):
    folder = write_classifier(tmp_path_factory.mktemp("reranker"), labels=("relevance",))
    async with running_server(VLLMEngine(str(folder)), ManagerConfig(drain_timeout=5)) as server:
        yield server


def library_vectors(texts):
    """Return the vectors as sentence-transformers makes them of this model: the mean over a text's tokens, of length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = resolve("bundled-embedding")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for text in texts:
            (hidden,) = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state
            found.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).tolist())
    return found


class TestEmbedding(EmbeddingContract):
    @pytest.fixture
    def manager(self, embedding_server):
        return embedding_server.manager

    async def test_its_figures_are_the_model_s(self, manager):
        info = manager.info
        assert (info.tasks, info.embedding_size, info.max_model_len, info.dimensions, info.labels) == (("embed",), 384, 256, (), ())

    async def test_vectors_are_the_library_s(self, manager):
        found = await together(manager, TEXTS, truncate_prompt_tokens=-1)
        distances = [1 - cosine(one.vector, other) for one, other in zip(found, library_vectors(TEXTS), strict=True)]
        assert max(distances) <= DISTANCE, distances

    async def test_a_model_with_one_size_says_so(self, manager):
        with pytest.raises(InvalidRequest, match="this model's vectors have one size"):
            await manager.embed("x", dimensions=128)


class TestOpenAI(OpenAIEmbeddingsContract):
    @pytest.fixture
    def server(self, embedding_server):
        return embedding_server


@pytest.mark.nightly
async def test_vectors_survive_the_death_of_their_core():
    """tests/llmserve/test_core_deaths.py has the other kinds of death, on a stand-in core."""
    # All are in the engine, which needs many steps. Requests in the queue may be refused during a
    # restart, as with generation.
    config = ManagerConfig(admission=AdmissionConfig(max_running=60))
    async with EngineManager(VLLMEngine("bundled-embedding", {"max_num_seqs": 1}), config) as manager:
        expected = [(await manager.embed(text)).vector for text in TEXTS[:3]]
        engine = manager.engine
        assert isinstance(engine, VLLMEngine)
        (core,) = engine.processes()

        async def kill():
            while manager.metrics()["requests"]["completed"] == len(expected):
                await anyio.sleep(0.001)
            os.kill(core, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            found = await together(manager, TEXTS[:3] * 20)
        assert all(cosine(one.vector, expected[index % 3]) > CLOSE for index, one in enumerate(found))
        assert manager.statistics().restarts == 1
        check_quiescent(manager)


@pytest.mark.nightly
async def test_classes_are_the_library_s(classifier_server):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    manager = classifier_server.manager
    assert (manager.info.tasks, manager.info.labels) == (("classify",), ("no", "perhaps", "yes"))
    folder = manager.info.model
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        for text in TEXTS[:3]:
            (expected,) = model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1).tolist()
            assert (await manager.embed(text)).vector.tolist() == pytest.approx(expected, abs=1e-3)


async def test_the_score_of_a_pair_is_the_library_s(reranker_server):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    manager = reranker_server.manager
    folder = manager.info.model
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = [("What is the capital of France?", text) for text in TEXTS[:3]]
    with torch.inference_mode():
        expected = [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    found = [(await manager.embed(text, task="classify", pair=pair)).vector[0] for text, pair in pairs]
    assert found == pytest.approx([1 / (1 + math.exp(-value)) for value in expected], abs=1e-3)
    raw = [(await manager.embed(text, task="classify", pair=pair, activation=False)).vector[0] for text, pair in pairs]
    assert raw == pytest.approx(expected, abs=1e-2)
    assert len({round(value, 3) for value in raw}) > 1
