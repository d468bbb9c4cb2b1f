"""The contract of /v1/embeddings with the official `openai` client: subclass it with a fixture `server`.

The server's model embeds and does not generate.
"""

import base64
from array import array

import openai
import pytest
from contracts.embedding_contract import CLOSE, TEXT, TEXTS

from llmserve import GenerationRequest
from llmserve.pooling.vectors import cosine


class OpenAIEmbeddingsContract:
    @pytest.fixture
    async def client(self, server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    async def vectors(self, server):
        return [(await server.manager.embed(text)).vector for text in TEXTS]

    @pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
    async def test_texts_have_their_vectors_in_order(self, client, vectors, form):
        # Without a format the client asks for base64, and decodes it.
        answer = await client.embeddings.create(model="sim", input=TEXTS, **form)
        assert [item.index for item in answer.data] == [0, 1, 2, 3]
        for item, expected in zip(answer.data, vectors, strict=True):
            found = item.embedding
            if form.get("encoding_format") == "base64" and isinstance(found, str):
                found = array("f", base64.b64decode(found))
            assert cosine(found, expected) > CLOSE
        assert (answer.object, answer.model) == ("list", "sim")

    async def test_a_single_text_and_token_ids(self, server, client, vectors):
        ids = list((await server.manager.tokenize(GenerationRequest(TEXT))).token_ids)
        for given, count in ((TEXT, 1), ([TEXT], 1), (ids, 1), ([ids, ids], 2)):
            answer = await client.embeddings.create(model="sim", input=given)
            assert [cosine(item.embedding, vectors[0]) > CLOSE for item in answer.data] == [True] * count
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == count * len(ids)

    async def test_many_texts_of_mixed_lengths(self, client, server):
        texts = [f"{number} " + "word " * (number % 40) for number in range(200)]
        answer = await client.embeddings.create(model="sim", input=texts)
        assert len(answer.data) == 200
        expected = (await server.manager.embed(texts[137])).vector
        assert cosine(answer.data[137].embedding, expected) > CLOSE

    async def test_one_wrong_input_fails_the_request(self, client, server):
        most = server.manager.info.max_model_len
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="sim", input=[[5], [5] * (most + 1), [6]])
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")

    async def test_wrong_models_are_named(self, client):
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="other", input="x")
        for call in (
            client.chat.completions.create(model="sim", messages=[{"role": "user", "content": "hi"}]),
            client.completions.create(model="sim", prompt="hi"),
        ):
            with pytest.raises(openai.BadRequestError, match="does not support generation") as caught:
                await call
            assert caught.value.param == "model"

    async def test_scores_are_cosines(self, server, vectors):
        body = {"queries": TEXTS[0], "documents": TEXTS[1:]}
        for path in ("/score", "/v1/score"):
            _, answer, _ = await server.post(path, body)
            assert [item["score"] for item in answer["data"]] == pytest.approx(
                [cosine(vectors[0], other) for other in vectors[1:]], abs=1e-2
            )

    async def test_documents_come_by_relevance(self, server, vectors):
        documents = [TEXTS[2], {"text": TEXTS[1]}, TEXTS[3]]
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            _, answer, _ = await server.post(path, {"query": TEXTS[0], "documents": documents, "top_n": 2})
            assert answer["results"][0]["index"] == 1
            assert answer["results"][0]["document"] == {"text": TEXTS[1]}
            assert answer["results"][0]["relevance_score"] == pytest.approx(cosine(vectors[0], vectors[1]), abs=1e-2)
            assert len(answer["results"]) == 2
