"""Tool calls and reasoning in OpenAI's format, with the official client and a scripted engine."""

from typing import Any

import openai
import pytest
from engines import ScriptedEngine
from http_support import running_server

from llmserve import Delta, Message, ToolCall
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine

pytestmark = pytest.mark.anyio
USER: Any = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
# The meaning of each delta's text.
PARTS = {
    "think ": Message(reasoning="think "),
    "words": Message(content="words"),
    "f": Message(tool_calls=(ToolCall(0, "call_1", "f", ""),)),
    "f1": Message(tool_calls=(ToolCall(0, None, None, '{"a":'),)),
    "f2": Message(tool_calls=(ToolCall(0, None, None, "1}"),)),
    "g": Message(tool_calls=(ToolCall(1, "call_2", "g", "{}"),)),
    "nothing": Message("nothing"),
    "": Message(),
}
WHOLE = ["think ", "words", "f", "f1", "f2", "g"]


class Reads:
    """Takes a text apart by its words."""

    def read(self, text, token_ids, *, last):
        return PARTS[text]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def asked():
    """The client, and what answers it."""
    engine = ScriptedEngine()
    engine.make_reader = lambda request: Reads()
    async with running_server(engine) as server, openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:

        async def answer(texts, **fields):
            held = engine.submit

            async def submit(request_id, prompt, sampling, priority, sink):
                await held(request_id, prompt, sampling, priority, sink)
                for text in texts:
                    sink.put(Delta(text, (1,)))
                sink.put(Delta("", (2,), "stop"))

            engine.submit = submit
            try:
                return await client.chat.completions.create(model="sim", messages=USER, **fields)
            finally:
                engine.submit = held

        yield answer


async def test_a_whole_answer_has_its_calls_and_its_reasoning(asked):
    (choice,) = (await asked(WHOLE, tools=TOOLS)).choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content, choice.message.reasoning) == ("words", "think ")
    assert [(call.id, call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("call_1", "function", "f", '{"a":1}'),
        ("call_2", "function", "g", "{}"),
    ]
    # Of calls in the plural the field `index` is a stream's alone.
    assert "index" not in choice.message.tool_calls[0].model_dump()


@pytest.mark.parametrize("sent", [{}, {"include_reasoning": True}, {"include_reasoning": False}])
async def test_an_answer_has_no_reasoning_if_the_request_excludes_it(asked, sent):
    wanted = "think " if sent.get("include_reasoning", True) else ""
    message = (await asked(WHOLE, extra_body=sent)).choices[0].message
    assert (message.content, getattr(message, "reasoning", None) or "") == ("words", wanted)
    deltas = [chunk.choices[0].delta async for chunk in await asked(WHOLE, stream=True, extra_body=sent)]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == wanted
    assert "".join(delta.content or "" for delta in deltas) == "words"


async def test_an_answer_without_calls_is_text(asked):
    (choice,) = (await asked(["nothing"], tools=TOOLS)).choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "nothing", None)


async def test_a_named_call_has_the_finish_reason_stop(asked):
    named = {"type": "function", "function": {"name": "f"}}
    assert (await asked(WHOLE, tools=TOOLS, tool_choice=named)).choices[0].finish_reason == "stop"
    assert (await asked(WHOLE, tools=TOOLS, tool_choice="required")).choices[0].finish_reason == "tool_calls"


async def test_an_answer_of_nothing_is_its_role_and_its_end(asked):
    stream = await asked([""], tools=TOOLS, stream=True, stream_options={"include_usage": True})
    *chunks, usage = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.to_dict() for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
    assert usage.usage.completion_tokens == 2


async def test_the_client_puts_a_stream_s_pieces_together(asked):
    """Also when they come at once and are merged into one event: each is read by itself."""
    found, thought, words, reasons = {}, "", "", []
    stream = await asked(WHOLE, tools=TOOLS, stream=True)
    async for chunk in stream:
        (choice,) = chunk.choices
        thought += getattr(choice.delta, "reasoning", None) or ""
        words += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            one = found.setdefault(call.index, {"id": None, "name": "", "arguments": ""})
            one["id"] = call.id or one["id"]
            one["name"] += call.function.name or ""
            one["arguments"] += call.function.arguments or ""
            assert call.type == ("function" if call.id else None)
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert (thought, words) == ("think ", "words")
    assert found == {
        0: {"id": "call_1", "name": "f", "arguments": '{"a":1}'},
        1: {"id": "call_2", "name": "g", "arguments": "{}"},
    }
    assert reasons == ["tool_calls"]


async def test_the_simulated_engine_s_call_is_cut_alike_whole_and_in_a_stream_over_http():
    fields: dict[str, Any] = {"model": "sim", "messages": USER, "tools": TOOLS, "tool_choice": "required", "temperature": 0}
    async with (
        running_server(SimulatedEngine(SimulatedConfig(time_scale=0))) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        for most in (1, 15, 30, 44, 45, 46, 60, 100):
            choice = (await client.chat.completions.create(max_tokens=most, **fields)).choices[0]
            name, arguments, words, reason = "", "", "", None
            async for chunk in await client.chat.completions.create(max_tokens=most, stream=True, **fields):
                words += chunk.choices[0].delta.content or ""
                reason = chunk.choices[0].finish_reason or reason
                for call in chunk.choices[0].delta.tool_calls or ():
                    name, arguments = name + (call.function.name or ""), arguments + (call.function.arguments or "")
            calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
            assert (calls, choice.message.content or "", choice.finish_reason) == ([(name, arguments)] if name else [], words, reason)
        assert (calls, reason) == ([("f", "{}")], "tool_calls")
