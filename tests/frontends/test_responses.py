"""/v1/responses: the conversion to chats, and the official client on the simulated engine."""

from typing import Any

import msgspec
import pytest
from contracts.responses_contract import ResponsesContract
from engines import ScriptedEngine
from http_support import running_server

from frontends.access.caller import Caller
from frontends.openai.messages import ChatMessage
from frontends.responses import items
from frontends.responses.requests import LOGPROBS, ResponsesRequest
from frontends.responses.response_builder import ResponsesResponseBuilder
from llmserve import Completion, Delta, EngineError, GenerationRequest, Message, TokenLogprob, ToolCall, Usage

HI = {"input": "hi", "max_output_tokens": 5, "temperature": 0}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


@pytest.fixture
async def server():
    async with running_server() as server:
        yield server


class TestResponses(ResponsesContract):
    """The whole contract, with steps that take time, so that a response can be cancelled."""

    @pytest.fixture
    async def server(self):
        async with running_server(time_scale=1.0) as server:
            yield server


def request_of(**fields):
    wanted = msgspec.json.decode(msgspec.json.encode({**HI, **fields}), type=ResponsesRequest).wanted(Caller(), None)
    (request,) = wanted.requests
    return request


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "x", "status": "completed"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def reasoning(text):
    return {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


@pytest.mark.parametrize(
    ("items", "plain"),
    [
        ("hi", [{"role": "user", "content": "hi"}]),
        (
            [{"role": "developer", "content": [{"type": "input_text", "text": "a"}]}, {"type": "message", "role": "user", "content": "b"}],
            [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        ),
        (
            [reasoning("hm"), {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]}, CALL],
            [{"role": "assistant", "content": "a", "tool_calls": [CALLED], "reasoning": "hm"}],
        ),
        (
            [CALL, CALL, {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}]}],
            [
                {"role": "assistant", "content": "", "tool_calls": [CALLED, CALLED]},
                {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            ],
        ),
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
    ],
)
def test_items_become_chat_messages(items, plain):
    assert list(request_of(input=items).messages) == plain


@pytest.mark.parametrize("kind", ["reasoning", "function_call"])
def test_a_message_of_many_items_is_put_together_once(monkeypatch, kind):
    """The work is proportional to the items: a stored conversation may have thousands of a few bytes each."""
    assigned = []

    class Counted(ChatMessage):
        def __setattr__(self, name, value):
            assigned.append(len(value or ()))
            super().__setattr__(name, value)

    monkeypatch.setattr(items, "ChatMessage", Counted)
    one = reasoning("ab") if kind == "reasoning" else CALL
    (message,) = items.chat_messages(msgspec.convert([one] * 1000, list[items.Item]))
    assert len(message.reasoning or "") + len(message.tool_calls or ()) == (2000 if kind == "reasoning" else 1000)
    assert sum(assigned) <= 2000


def test_the_other_fields_become_those_of_a_chat():
    found = request_of(
        instructions="Be brief.",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        top_k=3,
        store=True,
        include=["reasoning.encrypted_content"],
        text={"verbosity": "low"},
    )
    assert found.messages[0] == {"role": "system", "content": "Be brief."}
    assert found.tools is not None
    assert (found.tools.choice, found.tools.name, found.tools.parallel) == ("named", "f", False)
    assert (found.template_kwargs["reasoning_effort"], found.sampling.top_k, found.sampling.max_tokens) == ("low", 3, 5)
    assert request_of(tool_choice="auto").tools is None


async def test_a_body_with_the_fields_that_a_coding_agent_sends_is_answered(server):
    """Agents declare tools that only OpenAI's server has, and hints for its cache."""
    body = {
        "model": "sim",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "additional_tools", "role": "developer", "tools": [{"type": "namespace", "name": "n", "tools": []}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ],
        "tools": [TOOL, {"type": "web_search"}, {"type": "custom", "name": "patch", "format": {"type": "grammar"}}, {"type": "namespace"}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "implicit"},
        "client_metadata": {"session": "s"},
    }
    async with server.session.post("/v1/responses", json=body) as response:
        found = decoded(await response.read())
    assert found[-1]["type"] == "response.completed"
    assert [tool["name"] for tool in found[-1]["response"]["tools"]] == ["f"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}}, "text"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs"),
        ({"top_logprobs": 15, "include": [LOGPROBS], "max_output_tokens": 2049}, "max_output_tokens"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_field_is_named(server, fields, param, stream):
    status, body, _ = await server.post("/v1/responses", {**HI, **fields, "stream": stream})
    assert (status, body["error"]["param"]) == (400, param), body


def decoded(sent):
    found: list[dict[str, Any]] = [msgspec.json.decode(line[6:]) for line in sent.split(b"\n") if line.startswith(b"data: ")]
    return found


async def test_an_error_after_the_first_token_is_the_last_event():
    engine = ScriptedEngine()
    async with running_server(engine) as server, server.session.post("/v1/responses", json={**HI, "stream": True}) as response:
        (sink,) = engine.sinks.values()
        sink.put(Delta("a", (1,)))
        sink.fail(EngineError("bad luck"))
        found = decoded(await response.read())
    assert (found[-1]["type"], found[-1]["response"]["status"]) == ("response.failed", "failed")
    assert found[-1]["response"]["error"] == {"code": "engine_error", "message": "bad luck"}


def parsed(content="", reasoning="", *calls):
    return Message(content, reasoning, tuple(ToolCall(*call) for call in calls))


async def test_reasoning_text_and_calls_are_items_of_their_own():
    deltas = [
        parsed(reasoning="hm"),
        parsed("so ", "."),
        parsed("it is", "", (0, "c0", "f", '{"a"')),
        parsed("", "", (0, None, None, ":1}"), (1, "c1", "g", "{}")),
    ]
    builder: Any = ResponsesResponseBuilder(GenerationRequest("x", request_id="x"), "m")
    builder.begin([None])
    sent = b"".join(builder.chunk(0, Delta("", (1,), message=message)) for message in deltas)
    assert builder.chunk(0, Delta("", (1,), "stop", message=Message())) == b""
    last = decoded(sent + builder.end([Usage(7, 5, 3)], 1, usage=False) + await builder.complete())[-1]
    whole: Any = ResponsesResponseBuilder(GenerationRequest("x", request_id="x"), "m")
    answer = parsed("so it is", "hm.", (0, "c0", "f", '{"a":1}'), (1, "c1", "g", "{}"))
    (body,) = [part async for part in whole.whole([Completion("x", "", (1,), "stop", Usage(7, 5, 3), message=answer)], 1, None)]
    expected = msgspec.json.decode(body)
    # The stream's reasoning continued after the text, which made two items of it.
    kinds = [item["type"] for item in last["response"]["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"] == [item["type"] for item in expected["output"]]
    assert [item["arguments"] for item in last["response"]["output"][2:]] == ['{"a":1}', "{}"]
    assert last["response"]["usage"] == expected["usage"]
    assert expected["output"][2]["call_id"] == "c0"


async def test_a_stream_has_the_logprobs_of_the_whole_answer(server):
    body = {**HI, "max_output_tokens": 40, "ignore_eos": True, "include": [LOGPROBS], "top_logprobs": 2}
    _, whole, _ = await server.post("/v1/responses", body)
    async with server.session.post("/v1/responses", json={**body, "stream": True}) as response:
        events = decoded(await response.read())
    (part,) = whole["output"][0]["content"]
    assert [(len(one["top_logprobs"]), one["logprob"] <= 0) for one in part["logprobs"]] == [(2, True)] * 40
    assert "".join(one["token"] for one in part["logprobs"]) == part["text"]
    sent = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [one for event in sent for one in event["logprobs"]] == part["logprobs"]
    by_type = {event["type"]: event for event in events}
    assert by_type["response.output_text.done"]["logprobs"] == part["logprobs"]
    assert by_type["response.content_part.done"]["part"] == by_type["response.output_item.done"]["item"]["content"][0] == part
    assert events[-1]["response"]["output"][0]["content"] == [part]
    assert (whole["top_logprobs"], events[-1]["response"]["top_logprobs"]) == (2, 2)


def test_the_number_of_logprobs_bounds_an_answer():
    assert request_of(include=[LOGPROBS], top_logprobs=3, max_output_tokens=None).sampling.max_tokens == 2**13
    assert request_of(include=[LOGPROBS]).sampling.logprobs == 0
    assert request_of(include=[]).sampling.logprobs is None


async def test_a_token_without_text_is_in_the_next_event_or_in_the_last_ones():
    deltas = [Delta("a", (1,)), Delta("", (2,)), Delta("b", (3,)), Delta("", (4,), "stop")]
    builder: Any = ResponsesResponseBuilder(GenerationRequest("x", request_id="x"), "m")
    builder.begin([None])
    sent = b""
    for delta in deltas:
        token = TokenLogprob(delta.token_ids[0], f"t{delta.token_ids[0]}", -1.0)
        sent += builder.chunk(0, msgspec.structs.replace(delta, logprobs=[token]))
    found = decoded(sent + builder.end([Usage(7, 5, 3)], 1, usage=False))
    tokens = [[one["token"] for one in event["logprobs"]] for event in found if "logprobs" in event]
    assert tokens == [["t1"], ["t2", "t3"], ["t1", "t2", "t3", "t4"]]


@pytest.mark.parametrize("kind", ["image_url", "input_file", "input_audio"])
@pytest.mark.parametrize(
    ("item", "field"),
    [({"role": "user"}, "content"), ({"role": "assistant"}, "content"), ({"type": "function_call_output", "call_id": "c"}, "output")],
)
async def test_a_part_that_is_not_text_is_refused_by_its_place(server, kind, item, field):
    parts = [{"type": "input_text", "text": "a"}, {"type": kind, "image_url": "data:image/png;base64,AAAA"}]
    status, body, _ = await server.post("/v1/responses", {**HI, "input": [{"role": "user", "content": "a"}, item | {field: parts}]})
    assert (status, body["error"]["param"]) == (400, "input"), body
    assert body["error"]["message"].startswith(f"input[1].{field}[1]: parts of the type '{kind}' are not supported")


async def test_the_items_of_earlier_responses_do_not_count_in_a_part_s_place(server):
    _, first, _ = await server.post("/v1/responses", {**HI, "max_output_tokens": 2})
    wrong = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
    status, body, _ = await server.post("/v1/responses", {**HI, "previous_response_id": first["id"], "input": wrong})
    assert (status, body["error"]["message"][:20]) == (400, "input[0].content[0]:"), body
