"""Images on real vLLM: a small LLaVA with random weights, whose answers depend on the pictures."""

import base64
import gc
import json
from typing import Any

import anthropic
import anyio
import openai
import psutil
import pytest
from http_support import running_server
from image_files import asking, data_url, part, picture
from program_support import fetch, program
from quiescence import check_quiescent
from vllm_vision_files import IMAGE_TOKENS, write_vision_model

from llmserve import (
    CancellationToken,
    EngineManager,
    GenerationRequest,
    Image,
    InvalidRequest,
    ManagerConfig,
    PromptTooLong,
    RequestCancelled,
    RestartConfig,
)
from llmserve.engines.vllm.engine import VLLMEngine

pytestmark = pytest.mark.nightly

PATIENCE = 300
SIZE = (640, 480)
RED, BLUE = picture(size=SIZE), picture(color="blue", size=SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_vision_model(tmp_path_factory.mktemp("vision")))


@pytest.fixture(scope="module")
async def server(folder):
    async with running_server(VLLMEngine(folder), ManagerConfig(drain_timeout=5)) as server:
        yield server


@pytest.fixture
def manager(server):
    return server.manager


def asked(*parts, **more):
    """Return a conversation whose image comes first, before more tokens than a block of the cache."""
    return {"request": [{"role": "user", "content": [*parts, "What is this? " * 12]}], "max_tokens": 4, "temperature": 0, **more}


async def test_an_image_s_tokens_are_in_the_usage(manager):
    assert manager.info.max_images == 64
    text, one, two = [await manager.generate(**asked(*[Image(RED)] * count)) for count in range(3)]
    assert one.usage.prompt_tokens == text.usage.prompt_tokens + IMAGE_TOKENS
    assert two.usage.prompt_tokens == text.usage.prompt_tokens + 2 * IMAGE_TOKENS
    tokenized = await manager.tokenize(GenerationRequest(messages=asked(Image(RED))["request"]))
    assert len(tokenized.token_ids) == one.usage.prompt_tokens


async def test_answers_depend_on_the_picture_and_not_on_its_form(manager):
    forms = [Image(RED), part(RED), Image(picture("WEBP", size=SIZE, lossless=True)), Image(picture("GIF", size=SIZE)), Image(BLUE)]
    found = [(await manager.generate(**asked(form, logprobs=5))).logprobs for form in forms]
    first, *same, other = [[(top.token_id, round(top.logprob, 3)) for top in logprobs[0].top] for logprobs in found]
    assert all(one == first for one in same)
    assert other != first


async def test_the_cache_tells_pictures_apart(manager):
    again = [(await manager.generate(**asked(Image(data)))).usage.cached_tokens for data in (RED, RED, picture(color="green", size=SIZE))]
    assert again[1] > IMAGE_TOKENS
    # The prompts differ from their first token's block on.
    assert again[2] == 0


async def test_an_image_that_was_prepared_and_not_sent_can_be_sent_later(manager):
    """By itself, vLLM would leave it out of the second prompt, as one that the engine has."""
    yellow = asked(Image(picture(color="yellow", size=SIZE)))
    await manager.tokenize(GenerationRequest(messages=yellow["request"]))
    assert (await manager.generate(**yellow)).usage.completion_tokens == 4


async def test_the_bytes_of_processed_images_count_as_long_as_a_prompt_has_them(manager):
    decoder = manager.engine._renderer._decoder
    prompt = await manager.tokenize(GenerationRequest(messages=asked(Image(RED))["request"]))
    # Three colours in at least one byte for each pixel of the model's resolution.
    assert decoder.held().total() > 3 * 20 * 20
    del prompt
    gc.collect()
    assert not decoder.held()


async def test_the_openai_client_sends_an_image(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part(RED)]}]
        answer = await client.chat.completions.create(model="sim", messages=messages, max_tokens=4, temperature=0)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="sim", messages=messages, max_tokens=4, temperature=0, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer.choices[0].message.content
        assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens > IMAGE_TOKENS
        for url, words in [
            ("https://example.com/a.png", "the server fetches nothing"),
            (data_url(RED[: len(RED) // 2]), "damaged or incomplete"),
        ]:
            messages[0]["content"][1] = {"type": "image_url", "image_url": {"url": url}}
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                await client.chat.completions.create(model="sim", messages=messages)
            assert caught.value.param == "messages[0].content[1].image_url.url"


async def test_the_three_apis_give_the_same_answer(server):
    """The answer has likely tokens of its own for each picture, so no other prompt would give it."""
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as openais,
        anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as anthropics,
    ):

        async def three(data):
            """Return the answers about a picture: to a chat, a message and a response."""
            messages: Any = [{"role": "user", "content": ["What is this?", part(data)]}]
            chat = await openais.chat.completions.create(model="sim", messages=messages, max_tokens=8, temperature=0)
            source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
            blocks: Any = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
            asked: Any = {"model": "sim", "messages": [{"role": "user", "content": blocks}]}
            message: Any = await anthropics.messages.create(**asked, max_tokens=8, extra_body={"temperature": 0})
            items: Any = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": data_url(data)}]
            items = [{"role": "user", "content": items}]
            response: Any = await openais.responses.create(model="sim", input=items, max_output_tokens=8, temperature=0)
            counted = (await anthropics.messages.count_tokens(**asked)).input_tokens
            assert counted == response.usage.input_tokens == (chat.usage and chat.usage.prompt_tokens)
            return [chat.choices[0].message.content, message.content[0].text, response.output_text]

        red, blue = await three(RED), await three(BLUE)
        assert len(set(red)) == len(set(blue)) == 1
        assert red != blue


@pytest.mark.parametrize("follows", [False, True])
async def test_a_picture_in_a_tool_s_result_is_read(server, follows):
    call = {"type": "tool_use", "id": "c1", "name": "read", "input": {}}
    counts = []
    for data in (None, RED):
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data or b"").decode()}
        content = [{"type": "text", "text": "a"}, *([{"type": "image", "source": source}] if data else [])]
        result = [{"type": "tool_result", "tool_use_id": "c1", "content": content}, *([{"type": "text", "text": "b"}] if follows else [])]
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": [call]}, {"role": "user", "content": result}]
        status, answer, _ = await server.post("/v1/messages", {"messages": messages, "max_tokens": 4, "temperature": 0})
        assert status == 200, answer
        counts.append(answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"])
    # Without a text of the user behind it, the image makes a message of its own.
    assert counts[1] == counts[0] + IMAGE_TOKENS + (0 if follows else len("<user>"))


async def test_what_does_not_fit_is_refused_and_the_engine_goes_on(manager):
    with pytest.raises(PromptTooLong):
        await manager.generate(asking(*[Image(RED)] * 64))
    # The template's own token for an image, without an image, and beside one.
    for parts in ([], [Image(RED)]):
        try:
            await manager.generate(asking("<image>", *parts), max_tokens=2)
        except InvalidRequest as error:
            assert error.param == "messages"
    assert (await manager.generate(**asked(Image(RED)))).usage.completion_tokens > 0
    check_quiescent(manager)


async def test_requests_that_leave_at_any_moment_leave_nothing(manager):
    async def leave(number):
        token = CancellationToken()
        async with anyio.create_task_group() as tasks:

            async def cancel():
                await anyio.sleep(0.01 * number)
                token.cancel("enough")

            tasks.start_soon(cancel)
            with pytest.raises(RequestCancelled):
                await manager.generate(
                    asking(Image(picture(color=(number, 0, 0), size=(2000, 2000)))), token, max_tokens=900, ignore_eos=True
                )

    async with anyio.create_task_group() as tasks:
        for number in range(24):
            tasks.start_soon(leave, number)
    check_quiescent(manager)
    assert (await manager.generate(**asked(Image(RED)))).usage.completion_tokens > 0


async def test_a_request_with_an_image_goes_to_another_engine_if_its_own_dies(folder):
    config = ManagerConfig(drain_timeout=5, restart=RestartConfig(most=1))
    manager: Any = EngineManager.open(folder, engines=2, config=config, engine_args={"kv_cache_memory_bytes": 2**28})
    async with manager:
        expected = (await manager.generate(**asked(Image(RED)))).text
        found = []

        async def ask():
            found.append((await manager.generate(**asked(Image(RED), max_tokens=400, ignore_eos=True))).text)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(ask)
                while manager.statistics().engine.running < 8:
                    await anyio.sleep(0.01)
                for pid in manager.engines[1].processes():
                    psutil.Process(pid).kill()
        assert len(found) == 8
        assert all(text.startswith(expected) for text in found)


async def test_several_workers_take_images(folder):
    async with program(None, "--workers", "2", engine=("--model", folder, "--max-wait", "60")) as (_, url, _):
        body = {"messages": [{"role": "user", "content": ["a", part(RED)]}], "max_tokens": 4, "temperature": 0}
        answers = []
        for _ in range(8):
            status, answer = await fetch(f"{url}/v1/chat/completions", body)
            assert status == 200
            answers.append(json.loads(answer)["choices"][0]["message"]["content"])
        assert len(set(answers)) == 1
