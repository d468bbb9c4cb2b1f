"""The contract of every engine with an embedding model, through a manager.

Subclass it with a fixture `manager` whose model embeds and does not generate.
"""

import anyio
import pytest
from quiescence import check_quiescent

from llmserve import CancellationToken, DeadlineExceeded, Embedding, InvalidRequest, PromptTooLong, RequestCancelled
from llmserve.pooling.vectors import cosine
from llmserve.request import GenerationRequest

TEXT = "The capital of France is Paris."
TEXTS = [TEXT, "Paris is the capital of France.", "The queue holds back requests while the engine is full.", "Hi"]
# Rounding depends on the other prompts of a step: with 16-bit floats, in the fourth digit.
CLOSE = 0.999


async def together(manager, texts, **fields):
    """Return the embeddings of concurrent requests, in the order of the texts."""
    found = {}

    async def one(index, text):
        found[index] = await manager.embed(text, **fields)

    async with anyio.create_task_group() as tasks:
        for index, text in enumerate(texts):
            tasks.start_soon(one, index, text)
    return [found[index] for index in range(len(texts))]


class EmbeddingContract:
    async def test_a_text_has_a_vector_of_length_1(self, manager):
        found = await manager.embed(TEXT)
        assert isinstance(found, Embedding)
        assert len(found) == len(found.vector) == manager.info.embedding_size
        assert sum(value * value for value in found.vector) == pytest.approx(1.0, abs=1e-3)
        assert found.to_dict()["vector"] == found.vector.tolist()

    async def test_usage_is_the_prompt_s_tokens(self, manager):
        found, prompt = await manager.embed(TEXT), await manager.tokenize(GenerationRequest(TEXT))
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt.token_ids), 0)

    async def test_token_ids_have_the_vector_of_their_text(self, manager):
        prompt = await manager.tokenize(GenerationRequest(TEXT))
        assert cosine((await manager.embed(prompt.token_ids)).vector, (await manager.embed(TEXT)).vector) > CLOSE

    async def test_many_at_once_do_not_mix(self, manager):
        alone = [await manager.embed(text) for text in TEXTS]
        found = await together(manager, TEXTS * 8)
        assert all(cosine(one.vector, alone[index % len(TEXTS)].vector) > CLOSE for index, one in enumerate(found))

    async def test_related_texts_are_closer_than_others(self, manager):
        one, related, other, _ = await together(manager, TEXTS)
        assert cosine(one.vector, related.vector) > cosine(one.vector, other.vector) + 0.2

    async def test_a_prompt_may_fill_the_context_and_no_more(self, manager):
        most = manager.info.max_model_len
        assert (await manager.embed([7] * most)).usage.prompt_tokens == most
        with pytest.raises(PromptTooLong):
            await manager.embed([7] * (most + 1))
        check_quiescent(manager)

    @pytest.mark.parametrize("side", [None, "left", "right"])
    async def test_a_long_text_is_truncated_on_request(self, manager, side):
        long = "the end " * manager.info.max_model_len
        assert (await manager.embed(long, truncate_prompt_tokens=8, truncation_side=side)).usage.prompt_tokens == 8
        whole = await manager.embed(long, truncate_prompt_tokens=-1, truncation_side=side)
        assert whole.usage.prompt_tokens == manager.info.max_model_len

    async def test_dimensions_are_those_that_the_model_allows(self, manager):
        if manager.info.dimensions:
            assert len(await manager.embed(TEXT, dimensions=manager.info.dimensions[0])) == manager.info.dimensions[0]
        with pytest.raises(InvalidRequest, match="dimensions") as caught:
            await manager.embed(TEXT, dimensions=manager.info.embedding_size + 1)
        assert caught.value.param == "dimensions"

    @pytest.mark.parametrize("prompt", [TEXT, [{"role": "user", "content": "hi"}]])
    async def test_it_does_not_generate(self, manager, prompt):
        with pytest.raises(InvalidRequest, match=r"does not support generation; its tasks are: embed$") as caught:
            await manager.generate(prompt)
        assert caught.value.param == "model"
        check_quiescent(manager)

    async def test_it_does_not_classify(self, manager):
        with pytest.raises(InvalidRequest, match="does not support classification"):
            await manager.embed(TEXT, task="classify")

    async def test_a_token_and_a_deadline_end_it(self, manager):
        token = CancellationToken()
        token.cancel("enough")
        with pytest.raises(RequestCancelled, match="enough"):
            await manager.embed(TEXT, token)
        with pytest.raises(DeadlineExceeded):
            await manager.embed(TEXT, deadline=1e-9)
        check_quiescent(manager)

    async def test_a_caller_that_leaves_frees_everything(self, manager):
        with anyio.move_on_after(0):
            await together(manager, TEXTS)
        await manager.embed(TEXT)
        check_quiescent(manager)

    async def test_it_is_counted_and_its_vector_is_its_first_token(self, manager):
        before = manager.metrics()
        found = await manager.embed(TEXT)
        after = manager.metrics()
        assert after["requests"]["completed"] == before["requests"]["completed"] + 1
        assert after["tokens"]["prompt"] == before["tokens"]["prompt"] + found.usage.prompt_tokens
        assert after["tokens"]["completion"] == before["tokens"]["completion"]
        assert after["ttft"]["count"] == before["ttft"]["count"] + 1
        assert manager.statistics().engine.prompt_tokens >= found.usage.prompt_tokens
