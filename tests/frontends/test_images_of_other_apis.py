"""Images through /v1/messages and /v1/responses, as coding agents send them: the same prompt and errors as a chat's."""

import base64
import re
import time
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from http_support import running_server
from image_files import bomb, data_url, part, picture

from frontends.access.caller import Caller
from frontends.anthropic.requests import CountRequest
from frontends.openai.chat import ChatRequest
from frontends.responses.memory import ResponseMemory
from frontends.responses.requests import ResponsesRequest
from llmserve import InvalidRequest

RED, BLUE, GREEN = (picture(color=color) for color in ("red", "blue", "green"))
TOKENS = 16
QUESTION = "What is this?"
SAMPLING = {"temperature": 0}
CALL, RESULT = {"type": "tool_use", "id": "c1", "name": "read", "input": {}}, {"type": "tool_result", "tool_use_id": "c1"}
FUNCTION_CALL, OUTPUT = (
    {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1"},
)
FETCHES = "the server fetches nothing, not even from https: addresses; send the image as a data URL"
DAMAGED = "the PNG image is damaged or incomplete"
PIXELS = "the image has 60,000 x 60,000 pixels, but may have at most 16,777,216"
HUGE = bomb(60_000, 60_000)


def block(file, **source):
    encoded = base64.b64encode(file).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded} | source}


def item(data, **more):
    return {"type": "input_image", "image_url": data_url(data), "detail": "high"} | more


def text(words, kind="text"):
    return {"type": kind, "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.fixture
async def server():
    async with running_server(image_tokens=TOKENS) as server:
        yield server


@pytest.fixture
async def anthropics(server):
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def openais(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def plain(kind, **body):
    (request,) = msgspec.json.decode(msgspec.json.encode(body), type=kind).wanted(Caller(), None).requests
    return list(request.messages)


def test_the_same_parts_become_the_same_prompt_and_keep_their_order():
    parts = plain(ChatRequest, messages=[user("a", part(RED), "b", part(BLUE))])
    assert plain(CountRequest, messages=[user(text("a"), block(RED), text("b"), block(BLUE))]) == parts
    items = (text("a", "input_text"), item(RED), text("b", "input_text"), item(BLUE))
    assert plain(ResponsesRequest, input=[user(*items)]) == parts


@pytest.mark.parametrize("follows", [False, True])
def test_the_images_of_tools_results_come_after_all_of_them(follows):
    """Chat templates have images only in the user's messages, and the results directly after the calls."""
    calls = [{"id": name, "type": "function", "function": {"name": "read", "arguments": "{}"}} for name in ("c1", "c2")]
    chat: list[Any] = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": ""},
        user(part(RED), part(BLUE), *([QUESTION] if follows else [])),
    ]
    second = {"id": "c2"}
    results = [RESULT | {"content": [text("one"), block(RED)]}, RESULT | {"tool_use_id": "c2", "content": [block(BLUE)]}]
    messages = [{"role": "assistant", "content": [CALL, CALL | second]}, user(*results, *([text(QUESTION)] if follows else []))]
    assert plain(CountRequest, messages=messages) == plain(ChatRequest, messages=chat)
    items: list[Any] = [FUNCTION_CALL, FUNCTION_CALL | {"call_id": "c2"}]
    items += [OUTPUT | {"output": [text("one", "input_text"), item(RED)]}, OUTPUT | {"call_id": "c2", "output": [item(BLUE)]}]
    items += [{"role": "user", "content": QUESTION}] if follows else []
    assert plain(ResponsesRequest, input=items) == plain(ChatRequest, messages=chat)


def test_an_answer_after_a_result_does_not_get_the_image():
    items = [FUNCTION_CALL, OUTPUT | {"output": [item(RED)]}, {"role": "assistant", "content": "red"}]
    assert [(one["role"], type(one["content"])) for one in plain(ResponsesRequest, input=items)] == [
        ("assistant", str), ("tool", str), ("user", list), ("assistant", str)
    ]  # fmt: skip


def test_an_empty_message_after_a_result_has_only_the_image():
    """A regression: an empty text was behind it."""
    messages = [{"role": "assistant", "content": [CALL]}, user(RESULT | {"content": [block(RED)]}), {"role": "user", "content": ""}]
    items = [FUNCTION_CALL, OUTPUT | {"output": [item(RED)]}, {"role": "user", "content": ""}]
    for found in (plain(CountRequest, messages=messages), plain(ResponsesRequest, input=items)):
        assert [one["role"] for one in found] == ["assistant", "tool", "user"]
        assert len(found[-1]["content"]) == 1
    assert plain(CountRequest, messages=messages[2:]) == [{"role": "user", "content": ""}]


@pytest.mark.parametrize("source", [5, "a", None, [], {"type": 5}])
def test_only_an_image_s_source_is_read(source):
    """A regression: a stray one of another block was a type error of `source`."""
    assert plain(CountRequest, messages=[user(text("a") | {"source": source})]) == [{"role": "user", "content": "a"}]
    with pytest.raises(InvalidRequest, match="a content block has the type 'search_result'"):
        plain(CountRequest, messages=[user({"type": "search_result", "source": source})])
    with pytest.raises(InvalidRequest, match=re.escape("messages[0].content[0].source: Expected `")) as caught:
        plain(CountRequest, messages=[user({"type": "image", "source": source})])
    assert caught.value.param == "messages[0].content[0].source"


def test_a_missing_source_of_an_image_is_named():
    with pytest.raises(InvalidRequest, match=re.escape("messages[0].content[0].source: an image requires source")):
        plain(CountRequest, messages=[user({"type": "image"})])


async def test_the_three_apis_give_the_same_answer(server, anthropics, openais):
    for data in (RED, BLUE):
        _, chat, _ = await server.post(
            "/v1/chat/completions", {"messages": [user(QUESTION, part(data))], "max_tokens": 9, "temperature": 0}
        )
        expected = chat["choices"][0]["message"]["content"]
        asked = {"model": "sim", "messages": [user(text(QUESTION), block(data))]}
        message = await anthropics.messages.create(**asked, max_tokens=9, extra_body=SAMPLING)
        async with anthropics.messages.stream(**asked, max_tokens=9, extra_body=SAMPLING) as stream:
            streamed = await stream.get_final_message()
        counted = await anthropics.messages.count_tokens(**asked)
        items = [user(text(QUESTION, "input_text"), item(data))]
        response = await openais.responses.create(model="sim", input=items, max_output_tokens=9, temperature=0)
        assert message.content[0].text == streamed.content[0].text == response.output_text == expected
        assert message.usage.input_tokens + message.usage.cache_read_input_tokens == counted.input_tokens
        assert counted.input_tokens == response.usage.input_tokens == chat["usage"]["prompt_tokens"]


async def test_the_picture_that_an_agent_has_read_is_seen(anthropics, openais):
    """Claude Code and Codex return a picture as the result of a tool."""

    async def messages(data):
        result = RESULT | {"content": [block(data)], "is_error": False, "cache_control": {"type": "ephemeral"}}
        asked = {"model": "sim", "messages": [user(text(QUESTION)), {"role": "assistant", "content": [CALL]}, user(result)]}
        counted = await anthropics.messages.count_tokens(**asked)
        return counted.input_tokens, (await anthropics.messages.create(**asked, max_tokens=9, extra_body=SAMPLING)).content[0].text

    async def responses(data):
        items: list[Any] = [{"role": "user", "content": QUESTION}, FUNCTION_CALL, OUTPUT | {"output": [item(data)]}]
        found = await openais.responses.create(model="sim", input=items, store=False, max_output_tokens=9, temperature=0)
        return found.usage.input_tokens, found.output_text

    for ask in (messages, responses):
        red, again, blue = [await ask(data) for data in (RED, RED, BLUE)]
        assert red == again
        assert (red[0], red[1] != blue[1]) == (blue[0], True)


FIRST = "messages[1].content[1].source"
NESTED = "messages[1].content[0].content[1].source"
BASE64 = "the server fetches no image and keeps none; send it with a source of the type base64, not"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(("nested", "field"), [(False, FIRST), (True, NESTED)])
@pytest.mark.parametrize(
    ("image", "name", "words"),
    [
        (block(b"", type="url", url="https://example.com/a.png"), "type", f"{BASE64} 'url'"),
        (block(b"", type="file", file_id="f"), "type", f"{BASE64} 'file'"),
        (block(RED, media_type="text/html"), "media_type", "must be image/png, image/jpeg, image/webp or image/gif"),
        (block(RED, data=None), "data", "an image requires data"),
        (block(RED, data="AAA"), "data", "the data is not valid base64"),
        (block(b"AAA"), "data", "the data is not a PNG, JPEG, WebP or GIF image"),
        (block(RED[:50]), "data", DAMAGED),
        (block(HUGE), "data", PIXELS),
    ],
)
async def test_a_wrong_image_of_a_message_is_named_by_its_place(server, path, nested, field, image, name, words):
    parts = [RESULT | {"content": [text("a"), image]}] if nested else [text("a"), image]
    # The system prompt is the chat's first message, and the second result its third one.
    body = {"system": "Be brief.", "messages": [user(text("a")), user(*parts)]} | ({"max_tokens": 1} if path == "/v1/messages" else {})
    status, answer, _ = await server.post(path, body)
    assert (status, answer["type"], answer["error"]["param"]) == (400, "error", f"{field}.{name}")
    assert answer["error"]["message"] == f"{field}.{name}: {words}"


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"background": True}])
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize(
    ("image", "name", "words"),
    [
        (item(RED, image_url="https://example.com/a.png"), "image_url", FETCHES),
        (item(RED, image_url=None), "image_url", "must be a data URL"),
        (item(RED, image_url={"url": data_url(RED)}), "image_url", "must be a data URL"),
        (item(RED, image_url=None, file_id="f"), "file_id", "the server reads no image from a file; send it as a data URL in image_url"),
        (item(RED[:50]), "image_url", DAMAGED),
        (item(HUGE), "image_url", PIXELS),
    ],
)
async def test_a_wrong_image_of_an_item_is_named_by_its_place(server, more, output, image, name, words):
    parts = [text("a", "input_text"), image]
    items = [{"role": "user", "content": "a"}, OUTPUT | {"output": parts} if output else user(*parts)]
    field = f"input[1].{'output' if output else 'content'}[1].{name}"
    status, answer, _ = await server.post("/v1/responses", {"input": items, "instructions": "Be brief."} | more)
    assert (status, answer["error"]["param"]) == (400, field)
    assert answer["error"]["message"] in (f"{field}: {words}", f"{field} {words}")


async def test_a_model_without_images_says_so_by_the_client_s_name():
    async with running_server() as server:
        for path, body, field in (
            ("/v1/messages", {"messages": [user(block(RED))], "max_tokens": 1}, "messages[0].content[0].source.data"),
            ("/v1/messages/count_tokens", {"messages": [user(block(RED))]}, "messages[0].content[0].source.data"),
            ("/v1/responses", {"input": [user(item(RED))]}, "input[0].content[0].image_url"),
        ):
            status, answer, _ = await server.post(path, body)
            assert (status, answer["error"]["param"], answer["error"]["message"]) == (400, field, f"{field}: the model takes no images")


async def test_the_number_of_images_is_bounded_as_in_a_chat(server):
    for path, body, field in (
        ("/v1/messages", {"messages": [user(*[block(RED)] * 65)], "max_tokens": 1}, "messages"),
        ("/v1/responses", {"input": [user(*[item(RED)] * 65)]}, "input"),
    ):
        status, answer, _ = await server.post(path, body)
        assert (status, answer["error"]["param"]) == (400, field)
        assert answer["error"]["message"] == f"{field} has 65 images, but may have at most 64"


async def test_a_stored_conversation_has_its_images(openais):
    asked = {"model": "sim", "max_output_tokens": 9, "temperature": 0}
    first = await openais.responses.create(**asked, input=[user(text(QUESTION, "input_text"), item(RED, detail="low"))])
    output = [OUTPUT | {"output": [item(BLUE) | {"detail": None}]}]
    second = await openais.responses.create(**asked, input=[FUNCTION_CALL, *output], previous_response_id=first.id)
    listed = [one async for one in openais.responses.input_items.list(second.id, order="asc")]
    assert [one.type for one in listed] == ["message", "message", "function_call", "function_call_output"]
    image = listed[0].content[1]
    assert (image.type, image.image_url, image.detail) == ("input_image", data_url(RED), "low")
    (image,) = listed[3].output
    assert (image.type, image.image_url, image.detail) == ("input_image", data_url(BLUE), "auto")
    third = await openais.responses.create(**asked, input="Why?", previous_response_id=second.id)
    items = [one.to_dict() for one in listed] + [one.to_dict() for one in second.output] + [{"role": "user", "content": "Why?"}]
    whole = await openais.responses.create(**asked, input=items)
    assert (whole.output_text, whole.usage.input_tokens) == (third.output_text, third.usage.input_tokens)
    with pytest.raises(openai.BadRequestError, match="the server fetches nothing") as caught:
        await openais.responses.create(**asked, input=[user(item(RED, image_url="http://a"))], previous_response_id=second.id)
    assert caught.value.param == "input[0].content[0].image_url"


async def test_the_bytes_of_images_count_among_those_of_stored_responses():
    """The client learns from `store` that there was no room."""
    data = RED + bytes(30_000)
    store = ResponseMemory(time.monotonic, max_bytes=60_000)
    async with running_server(image_tokens=TOKENS, app={"responses": store}) as server:
        stored = []
        for _ in range(2):
            _, answer, _ = await server.post("/v1/responses", {"input": [user(item(data))], "max_output_tokens": 1})
            stored.append(answer)
        assert all(one["store"] for one in stored)
        async with server.session.get(f"/v1/responses/{stored[0]['id']}") as response:
            assert response.status == 404
        _, answer, _ = await server.post("/v1/responses", {"input": [user(*[item(data)] * 2)], "max_output_tokens": 1})
        assert not answer["store"]


async def test_a_background_response_has_its_image(openais):
    asked = {"model": "sim", "input": [user(item(RED))], "max_output_tokens": 9, "temperature": 0}
    whole = await openais.responses.create(**asked)
    found = await openais.responses.create(**asked, background=True)
    while found.status in ("queued", "in_progress"):
        found = await openais.responses.retrieve(found.id)
    assert (found.output_text, found.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)


def test_the_tenant_of_the_caller_counts_for_an_image_that_is_only_counted():
    body = msgspec.json.encode({"messages": [user(block(RED))]})
    (request,) = msgspec.json.decode(body, type=CountRequest).wanted(Caller(tenant="a"), None).requests
    assert request.tenant == "a"
