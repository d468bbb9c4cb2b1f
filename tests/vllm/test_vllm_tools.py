"""Tool calls on the real engine with the official client, and vLLM's parsers on unusual answers."""

import itertools
import json
import pathlib
import re

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve import ConfigurationError, EngineError, GenerationRequest, InvalidRequest, Sampling, Tools
from llmserve.engine import EnginePrompt
from llmserve.engines.vllm.engine import VLLMEngine
from llmserve.engines.vllm.tool_parsers import Parsers
from llmserve.tools import join

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
FUNCTIONS = [
    {"name": "get_weather", "description": "The weather of a city", "parameters": WEATHER},
    {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "maxLength": 10}}, "required": ["zone"]},
    },
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
TIME = {"type": "function", "function": {"name": "get_time"}}
CALLS = "\n".join(
    f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    for call in (
        {"name": "get_weather", "arguments": {"city": "Paris", "unit": "C"}},
        {"name": "get_time", "arguments": {"zone": "CET"}},
    )
)


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(params=["hermes", None], ids=["by hermes", "by JSON"])
def parsers(request, engine, monkeypatch):
    """Parsers with the model's own call format, and without one."""
    if request.param is None:
        llm = engine.running_llm
        monkeypatch.setattr(engine, "_parsers", Parsers(None, None, llm.model_config, llm.get_tokenizer()))
    return engine._parsers


async def ask(client, **fields):
    return (
        await client.chat.completions.create(model="sim", messages=QUESTION, tools=TOOLS, max_tokens=200, temperature=0, **fields)
    ).choices[0]


async def streamed(client, **fields):
    """Return the calls by index, and the finish reason."""
    stream = await client.chat.completions.create(
        model="sim", messages=QUESTION, tools=TOOLS, max_tokens=200, temperature=0, stream=True, **fields
    )
    calls, reason = {}, None
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = name + (call.function.name or ""), arguments + (call.function.arguments or "")
        reason = chunk.choices[0].finish_reason or reason
    return calls, reason


@pytest.mark.usefixtures("parsers")
@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (TIME, "stop")], ids=["required", "named"])
async def test_a_call_that_is_forced_keeps_to_its_schema(client, choice, reason):
    answer = await ask(client, tool_choice=choice)
    assert answer.finish_reason == reason
    assert answer.message.tool_calls
    assert answer.message.content is None
    for call in answer.message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == ({"city", "unit"} if call.function.name == "get_weather" else {"zone"})
    if choice is TIME:
        assert [call.function.name for call in answer.message.tool_calls] == ["get_time"]
    calls, ended = await streamed(client, tool_choice=choice)
    assert ended == reason
    assert [(name, json.loads(arguments)) for name, arguments in calls.values()] == [
        (call.function.name, json.loads(call.function.arguments)) for call in answer.message.tool_calls
    ]
    # The call goes back, with its result.
    history = [*QUESTION, answer.message]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in answer.message.tool_calls]
    assert (
        (await client.chat.completions.create(model="sim", messages=history, tools=TOOLS, tool_choice="none", max_tokens=8))
        .choices[0]
        .message.content
    )


async def test_a_model_that_is_free_answers_in_words_and_without_a_parser_there_is_no_freedom(client, engine, monkeypatch):
    answer = await ask(client, tool_choice="auto")
    assert answer.message.content
    assert not answer.message.tool_calls
    llm = engine.running_llm
    monkeypatch.setattr(engine, "_parsers", Parsers(None, None, llm.model_config, llm.get_tokenizer()))
    with pytest.raises(openai.BadRequestError, match="tool_call_parser") as caught:
        await ask(client, tool_choice="auto")
    assert caught.value.param == "tools"
    assert (await ask(client, tool_choice="none")).message.content


async def test_a_schema_that_cannot_be_compiled_is_the_tools_fault(manager):
    functions = [
        {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}, "required": ["x"]}}
    ]
    with pytest.raises(InvalidRequest) as caught:
        await manager.generate(GenerationRequest(messages=QUESTION, tools=Tools(functions=functions, choice="required")))
    assert caught.value.param == "tools"


async def test_in_process_a_completion_has_its_calls(manager):
    tools = Tools(functions=FUNCTIONS, choice="named", name="get_time")
    request = GenerationRequest(messages=QUESTION, tools=tools, sampling=Sampling(max_tokens=100, temperature=0))
    completion = await manager.generate(request)
    (call,) = completion.message.tool_calls
    assert call.name == "get_time"
    assert set(json.loads(call.arguments)) == {"zone"}
    assert completion.text


def reader(engine, tool_parser, reasoning_parser, tools):
    llm = engine.running_llm
    made = Parsers(tool_parser, reasoning_parser, llm.model_config, llm.get_tokenizer())
    return made.reader(GenerationRequest(messages=QUESTION, tools=tools), EnginePrompt(token_ids=(1, 2)))


def read_by_token(engine, read, tokens):
    """Read an answer token by token, as the engine generates it."""
    decode = engine.running_llm.get_tokenizer().decode
    last = len(tokens) - 1
    return join([read.read(decode([token]), [token], last=number == last) for number, token in enumerate(tokens)])


@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_that_the_model_was_free_to_make_are_found(engine, parallel):
    tools = Tools(functions=FUNCTIONS, parallel=parallel)
    tokens = engine.running_llm.get_tokenizer().encode("Let me see. " + CALLS)
    found = read_by_token(engine, reader(engine, "hermes", None, tools), tokens)
    assert found.content == "Let me see. "
    expected = [("get_weather", {"city": "Paris", "unit": "C"}), ("get_time", {"zone": "CET"})][: None if parallel else 1]
    assert [(call.name, json.loads(call.arguments)) for call in found.tool_calls] == expected
    assert len({call.id for call in found.tool_calls}) == len(expected)


async def test_an_answer_is_the_same_in_any_pieces(engine):
    tokenizer = engine.running_llm.get_tokenizer()
    tokens = tokenizer.encode(CALLS)

    @settings(max_examples=100)
    @given(st.sets(st.integers(1, len(tokens) - 1)))
    def in_pieces(cuts):
        read, calls = reader(engine, "hermes", None, Tools(functions=FUNCTIONS)), {}
        bounds = [0, *sorted(cuts), len(tokens)]
        for start, end in itertools.pairwise(bounds):
            piece = tokens[start:end]
            for call in read.read(tokenizer.decode(piece), piece, last=end == len(tokens)).tool_calls:
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = name + (call.name or ""), arguments + call.arguments
        assert [(name, json.loads(arguments)) for name, arguments in calls.values()] == [
            ("get_weather", {"city": "Paris", "unit": "C"}),
            ("get_time", {"zone": "CET"}),
        ]

    in_pieces()


@pytest.mark.parametrize("choice", ["required", TIME], ids=["required", "named"])
async def test_a_call_that_is_cut_is_the_same_whole_and_in_a_stream(client, choice):
    for most in range(1, 40, 3):
        fields = {"tools": TOOLS, "tool_choice": choice, "temperature": 0, "max_tokens": most, "messages": QUESTION, "model": "sim"}
        answer = (await client.chat.completions.create(**fields)).choices[0]
        calls, words, reason = {}, "", None
        async for chunk in await client.chat.completions.create(stream=True, **fields):
            words += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
            for call in chunk.choices[0].delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = name + (call.function.name or ""), arguments + (call.function.arguments or "")
        whole = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or ()]
        assert (words, list(calls.values()), reason) == (answer.message.content or "", whole, answer.finish_reason)
        assert "<tool_call>" not in words


async def test_reasoning_is_separate_from_the_answer(engine):
    text = "Here is my thought process: two and two. Here is my response: four"
    tokens = engine.running_llm.get_tokenizer().encode(text)
    found = read_by_token(engine, reader(engine, None, "granite", None), tokens)
    assert (found.reasoning.strip(), found.content.strip()) == ("two and two.", "four")


async def test_an_answer_that_a_parser_stumbles_over_is_the_engine_s_failure(engine, monkeypatch):
    read = reader(engine, "hermes", None, Tools(functions=FUNCTIONS))
    monkeypatch.setattr(read, "_parser", None)
    with pytest.raises(EngineError, match="cannot be parsed"):
        read.read("x", (1,), last=True)


async def test_a_parser_that_vllm_has_not_is_named_before_anything_is_loaded():
    engine = VLLMEngine("bundled", {"tool_call_parser": "herms"})
    with pytest.raises(ConfigurationError, match=r"no tool_call_parser 'herms'; choose one of .*hermes"):
        await engine.run()


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_the_page_of_fields_has_all_of_vllm_s(route):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    page = pathlib.Path(__file__).parent.parent.parent.joinpath("docs/compatibility.md").read_text()
    known = set((ChatCompletionRequest if route == "chat" else CompletionRequest).model_fields)
    assert known <= set(re.findall(r"`(\w+)`", page)), known - set(re.findall(r"`(\w+)`", page))
