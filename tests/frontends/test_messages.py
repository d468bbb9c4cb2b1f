"""/v1/messages: the conversion to chats, the named events, and errors in Anthropic's format.

`tests/contracts/anthropic_contract.py` has the official client.
"""

from typing import Any

import msgspec
import pytest
from engines import ScriptedEngine
from http_support import running_server

from frontends.access.api_keys import Keys
from frontends.access.caller import Caller
from frontends.access.control import Access
from frontends.anthropic.errors import MessagesErrorBody
from frontends.anthropic.requests import MessagesRequest
from frontends.anthropic.response_builder import MessagesResponseBuilder
from frontends.http.errors import described
from frontends.openai.errors import ErrorBody
from llmserve import Completion, Delta, EngineError, Message, ToolCall, Usage

USER = [{"role": "user", "content": "hi"}]
HI = {"messages": USER, "max_tokens": 5, "temperature": 0}
CALL = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": [1]}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
TOOL = {"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}


def request_of(**fields):
    wanted = msgspec.json.decode(msgspec.json.encode({**HI, **fields}), type=MessagesRequest).wanted(Caller(), None)
    (request,) = wanted.requests
    return request


def text(words):
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("messages", "plain"),
    [
        (USER, [{"role": "user", "content": "hi"}]),
        ([{"role": "user", "content": [text("a"), text("b")]}], [{"role": "user", "content": "a\nb"}]),
        (
            [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, text("a"), CALL]}],
            [
                {
                    "role": "assistant",
                    "content": "a",
                    "reasoning": "hm",
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}],
                }
            ],
        ),
        (
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [text("sunny")]}, text("so?")]}],
            [{"role": "tool", "content": "sunny", "tool_call_id": "c1"}, {"role": "user", "content": "so?"}],
        ),
        (
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}],
            [{"role": "tool", "content": "", "tool_call_id": "c1"}],
        ),
        (
            [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, text("a")]}],
            [{"role": "assistant", "content": "a"}],
        ),
    ],
)
def test_content_blocks_become_chat_messages(messages, plain):
    found = request_of(messages=messages)
    assert list(found.messages) == plain


def test_the_other_fields_become_those_of_a_chat():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    fields = {
        "system": [text("x-anthropic-billing-header: cch=1;"), text("Be brief.")],
        "tools": [TOOL],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "disabled"},
        "stop_sequences": ["x"],
        "top_k": 3,
        "metadata": {"user_id": "me", "other": 1},
        "context_management": {"edits": []},
        "service_tier": "auto",
    }
    found = request_of(**fields)
    assert found.messages[0] == {"role": "system", "content": "Be brief."}
    assert found.tools is not None
    assert (found.tools.choice, found.tools.name, found.tools.parallel) == ("named", "f", False)
    assert (found.template_kwargs, found.sampling.stop, found.sampling.top_k, found.tenant) == ({"enable_thinking": False}, ("x",), 3, "me")
    form = request_of(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"})
    assert form.sampling.structured_outputs is not None
    assert form.template_kwargs == {"enable_thinking": True, "reasoning_effort": "low"}
    assert request_of(tools=[TOOL], tool_choice={"type": "any"}).tools.choice == "required"


@pytest.fixture
async def server():
    async with running_server() as server:
        yield server


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "search_result", "source": "a", "content": [text("b")]}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [CALL]}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [IMAGE]}]}, "messages"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [{**CALL, "input": "x"}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"system": [IMAGE]}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": ["x"] * 5}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "output_config"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": [{"url": "http://127.0.0.1"}]}, "mcp_servers"),
        ({"n": 2}, "n"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_field_is_named_in_anthropic_s_error(server, fields, param, stream):
    status, body, _ = await server.post("/v1/messages", {**HI, **fields, "stream": stream})
    assert (status, body["type"], body["error"]["type"], body["error"]["param"]) == (400, "error", "invalid_request_error", param)
    assert body["error"]["message"]


async def test_the_key_may_come_as_anthropic_s_client_sends_it():
    async with running_server(app={"access": Access(Keys.single("secret"))}) as server:
        for headers, expected in (
            ({"X-Api-Key": "secret"}, 200),
            ({"Authorization": "Bearer secret"}, 200),
            ({"X-Api-Key": "other"}, 401),
            ({"X-Api-Key": "secret", "Authorization": "Bearer other"}, 401),
            ({}, 401),
        ):
            status, body, _ = await server.post("/v1/messages", HI, headers=headers)
            assert status == expected, headers
            assert status == 200 or body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/v1/messages", "/llm/v1/messages/count_tokens", "/v1/chat/completions", ""])
def test_an_error_has_the_format_of_its_path(path):
    """Ray's ingress answers errors for paths that no route has matched yet."""
    _, body, _ = described(EngineError("bad luck"), path)
    assert isinstance(body, MessagesErrorBody if "messages" in path else ErrorBody)


async def events(server, body):
    async with server.session.post("/v1/messages", json={**body, "stream": True}) as response:
        assert response.status == 200
        blocks = (await response.text()).split("\n\n")[:-1]
    pairs = [block.split("\n") for block in blocks]
    found: list[dict[str, Any]] = [msgspec.json.decode(data.removeprefix("data: ")) for _, data in pairs]
    assert [name.removeprefix("event: ") for name, _ in pairs] == [event["type"] for event in found]
    return found


async def test_a_stream_has_the_named_events_in_order(server):
    _, whole, _ = await server.post("/v1/messages", HI)
    found = await events(server, HI)
    kinds = [event["type"] for event in found]
    deltas = [event for event in found if event["type"] == "content_block_delta"]
    order = ["message_start", "content_block_start", *["content_block_delta"] * len(deltas), "content_block_stop", "message_delta"]
    assert kinds == [*order, "message_stop"]
    assert "".join(event["delta"]["text"] for event in deltas) == whole["content"][0]["text"]
    assert found[0]["message"]["usage"] | {"input_tokens": 0} == dict.fromkeys(found[0]["message"]["usage"], 0)
    assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 5


async def test_an_error_after_the_first_token_is_the_last_event():
    engine = ScriptedEngine()
    async with running_server(engine) as server, server.session.post("/v1/messages", json={**HI, "stream": True}) as response:
        (sink,) = engine.sinks.values()
        sink.put(Delta("a", (1,)))
        sink.fail(EngineError("bad luck"))
        *_, name, data = (await response.text()).strip().split("\n")
    assert name == "event: error"
    assert msgspec.json.decode(data.removeprefix("data: "))["error"]["type"] == "api_error"


def parsed(content="", reasoning="", *calls):
    return Message(content, reasoning, tuple(ToolCall(*call) for call in calls))


class Stream:
    usage = Usage(7, 0)


def test_reasoning_text_and_calls_are_blocks_of_their_own():
    builder = MessagesResponseBuilder("x", "m")
    streams: list[Any] = [Stream]
    builder.begin(streams)
    deltas = [
        parsed(reasoning="hm"),
        parsed("so ", "."),
        parsed("it is", "", (0, "c0", "f", '{"a"')),
        parsed("", "", (0, None, None, ":1}"), (1, "c1", "g", "{}")),
    ]
    sent = b"".join(builder.chunk(0, Delta("", (1,), message=message)) for message in deltas)
    assert builder.chunk(0, Delta("", (1,), "stop", message=Message())) == b""
    sent += builder.end([Usage(7, 5, 3)], 1, usage=False)
    found: list[dict[str, Any]] = [msgspec.json.decode(line[6:]) for line in sent.split(b"\n") if line.startswith(b"data: ")]
    started = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert started == ["thinking", "text", "tool_use", "tool_use"]
    assert [event["index"] for event in found if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    pieces = [event["delta"]["partial_json"] for event in found if event.get("delta", {}).get("type") == "input_json_delta"]
    assert pieces == ['{"a"', ":1}", "{}"]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    assert found[-2]["usage"] == {"input_tokens": 4, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 0}


async def test_the_whole_answer_has_the_same_blocks():
    calls = parsed("so", "hm", (0, "c0", "f", '{"a":1}'), (1, "c1", "g", '{"cut'))
    completion = Completion("x", "", (1,), "stop", Usage(7, 5), message=calls)
    builder: Any = MessagesResponseBuilder("x", "m")
    (body,) = [part async for part in builder.whole([completion], 1, None)]
    found = msgspec.json.decode(body)
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["input"] for block in found["content"][2:]] == [{"a": 1}, {"arguments": '{"cut'}]
    assert (found["stop_reason"], found["id"]) == ("tool_use", "msg-x")


async def test_an_answer_without_text_still_begins_and_ends(server):
    found = await events(server, {**HI, "stop_sequences": [" ", ",", "."]})
    kinds = [event["type"] for event in found]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
