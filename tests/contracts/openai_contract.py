"""The contract with the official `openai` client: subclass it with a fixture `server`."""

import openai
import pytest

# Its answer ends soon on every processor: the bundled model's likeliest tokens lead by a nat.
QUESTION = [{"role": "user", "content": "Please complete: The capital of France is"}]


class OpenAIContract:
    @pytest.fixture
    async def client(self, server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    def model(self):
        return "sim"  # the name that the test server serves under

    async def test_the_model_is_listed(self, client, model):
        assert [card.id async for card in client.models.list()] == [model]

    async def test_a_completion(self, client, model):
        answer = await client.completions.create(model=model, prompt="Once upon a time", max_tokens=5, temperature=0)
        assert answer.choices[0].text
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 5
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5

    async def test_a_streamed_completion_is_the_same_text(self, client, model):
        fields = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
        whole = await client.completions.create(**fields)
        stream = await client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
        assert chunks[-1].usage.completion_tokens == 8

    async def test_a_chat(self, client, model):
        answer = await client.chat.completions.create(model=model, messages=QUESTION, max_completion_tokens=6, temperature=0)
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content
        assert answer.usage.completion_tokens <= 6

    async def test_a_streamed_chat_is_the_same_text(self, client, model):
        fields = {"model": model, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
        whole = await client.chat.completions.create(**fields)
        chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason

    async def test_the_stream_helper_assembles_an_answer(self, client, model):
        async with client.chat.completions.stream(model=model, messages=QUESTION, temperature=0) as stream:
            answer = await stream.get_final_completion()
        assert answer.choices[0].message.content

    async def test_several_choices_and_prompts(self, client, model):
        answer = await client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]

    async def test_token_ids_as_a_prompt(self, client, model):
        answer = await client.completions.create(model=model, prompt=[65, 66, 67], max_tokens=2)
        assert answer.usage.prompt_tokens == 3

    async def test_a_seed_repeats(self, client, model):
        answers = [
            await client.completions.create(
                model=model, prompt="Once", max_tokens=8, temperature=1, seed=3, extra_body={"ignore_eos": True}
            )
            for _ in range(2)
        ]
        assert answers[0].choices[0].text == answers[1].choices[0].text

    async def test_logprobs(self, client, model):
        answer = await client.chat.completions.create(model=model, messages=QUESTION, max_tokens=3, logprobs=True, top_logprobs=2)
        content = answer.choices[0].logprobs.content
        assert len(content) == answer.usage.completion_tokens
        assert all(len(entry.top_logprobs) == 2 for entry in content)

    async def test_a_stop_string(self, client, model):
        fields = {"model": model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}
        text = (await client.completions.create(**fields)).choices[0].text
        stop = text[len(text) // 2 :][:3]
        cut = (await client.completions.create(**fields, stop=stop)).choices[0]
        assert cut.text == text[: text.index(stop)]
        assert cut.finish_reason == "stop"

    @pytest.mark.parametrize(
        ("fields", "kind", "param"),
        [
            ({"model": "other"}, openai.NotFoundError, "model"),
            ({"temperature": -1}, openai.BadRequestError, "temperature"),
            ({"prompt": ""}, openai.BadRequestError, "prompt"),
            ({"prompt": "x " * 100_000}, openai.BadRequestError, "prompt"),
            ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ],
        ids=["model", "temperature", "empty", "long", "max_tokens"],
    )
    async def test_errors_are_the_client_s_own(self, client, model, fields, kind, param):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                await client.completions.create(**{"model": model, "prompt": "x", "stream": stream, **fields})
            assert caught.value.param == param
