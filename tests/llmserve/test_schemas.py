"""Schemas on the simulated engine: answers conform, or the error names the refused keyword."""

import copy
import json
import re

import jsonschema
import pytest
from hypothesis import given, seed, settings
from schemas import SCHEMAS

from llmserve import EngineManager, GenerationRequest, InvalidRequest, Sampling, StructuredOutputs, Tools
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.json_schema.narrowing import REFUSED, hold
from llmserve.json_schema.patterns import parse
from llmserve.json_schema.values import CONSTRAINING, UnsupportedSchema
from llmserve.tools import join

KEYWORDS = {*CONSTRAINING, *REFUSED, "$id", "false"}
FUNCTION = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 2}, "days": {"enum": [{}]}},
        "required": ["city"],
    },
}
NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}}


# Several parts, which run in parallel.
@pytest.mark.parametrize("part", range(4))
def test_the_smallest_answer_conforms_or_the_schema_is_refused_by_a_keyword_s_name(part):
    counts = {"held": 0, "refused": 0}

    @seed(part)
    @settings(database=None)
    @given(SCHEMAS)
    def check(schema):
        asked = copy.deepcopy(schema)
        try:
            text = hold(schema).shortest()
        except UnsupportedSchema as error:
            assert str(error).split(":")[0] in KEYWORDS or str(error).startswith("a schema is")
            counts["refused"] += 1
            return
        jsonschema.Draft202012Validator(asked).validate(json.loads(text))
        counts["held"] += 1

    check()
    # Neither outcome may cover nearly all schemas.
    assert min(counts.values()) > 10


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "object", "required": ["a"]}, "required"),
        ({"type": "string", "pattern": "a(?=b)"}, "pattern"),
        ({"type": "string", "pattern": "a^b"}, "pattern"),
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"$ref": "#"}, "$ref"),
        ({**NODE, "required": ["next"]}, "$ref"),
        ({"type": "string", "not": {"const": "a"}}, "not"),
        ({"enum": [1, 2], "minimum": 2}, "minimum"),
        ({"enum": [1, "a"], "type": "string"}, "type"),
        ({"type": "string", "format": "date", "maxLength": 3}, "maxLength"),
        ({"type": "string", "format": "json-pointer"}, "format"),
        ({"type": "string", "pattern": "a+", "maxLength": 3}, "maxLength"),
        ({"anyOf": [{"type": "integer"}], "minimum": 2}, "minimum"),
        ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, "allOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"minimum": 2}, "minimum"),
        ({"type": "number", "minimum": 1e-7}, "minimum"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": False}}, "false"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "stsring"}, "type"),
    ],
)
def test_unsupported_constraints_are_named(schema, keyword):
    with pytest.raises(UnsupportedSchema, match=rf"^{re.escape(keyword)}: "):
        hold(schema)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "pattern": '^"'}, '"\\""'),
        ({"type": "string", "pattern": "^[A-Z]{2}$", "maxLength": 2}, '"AA"'),
        ({"type": "integer", "exclusiveMinimum": 3}, "4"),
        ({"type": "array", "minItems": 2}, "[{}, {}]"),
        ({"type": "array", "items": NODE | {"properties": {}}, "minItems": 3}, "[{}, {}, {}]"),
        (NODE, "{}"),
        ({"type": "string", "minLength": 1_000_000}, None),
        ({"type": "array", "items": {"type": "array", "minItems": 2**30}, "minItems": 2**30}, None),
    ],
)
def test_the_smallest_answer(schema, text):
    assert hold(schema).shortest() == text


@pytest.mark.parametrize("pattern", ["(?:" * 2000 + ")" * 2000, "(?i)a", r"\bx", "a{,3}", "[", "(?P<n>a)(?P=n)", "a*+"])
def test_a_pattern_that_is_not_supported_says_why(pattern):
    with pytest.raises(ValueError, match=r"support|cannot be read|nested|different things"):
        parse(pattern)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (StructuredOutputs.json({"type": "object", "properties": {"a": {"const": "é"}}, "required": ["a"]}), '{"a": "\\u00e9"}'),
        (StructuredOutputs.json_object(), "{}"),
        (StructuredOutputs.choice(["ä😀", "b"]), "ä😀"),
        (StructuredOutputs.regex(r"\d{4}-(a|bc)"), "0000-a"),
    ],
)
async def test_the_simulated_engine_keeps_to_each_kind_whole_and_in_a_stream(constraint, expected):
    request = GenerationRequest("x", sampling=Sampling(structured_outputs=constraint))
    async with EngineManager(SimulatedEngine(SimulatedConfig(time_scale=0))) as manager:
        answer = await manager.generate(request)
        assert (answer.text, answer.finish_reason) == (expected, "stop")
        async with manager.stream(GenerationRequest("x", sampling=request.sampling)) as stream:
            assert "".join([delta.text async for delta in stream]) == expected


@pytest.mark.anyio
async def test_a_call_of_the_simulated_engine_s_is_the_same_whole_and_in_a_stream_wherever_it_is_cut():
    weather = Tools(functions=[{"name": "f"}, FUNCTION], choice="named", name="get_weather")
    async with EngineManager(SimulatedEngine(SimulatedConfig(time_scale=0))) as manager:

        def request(most=None):
            return GenerationRequest(
                messages=[{"role": "user", "content": "hi"}], tools=weather, sampling=Sampling(max_tokens=most, temperature=0)
            )

        def parts(message):
            return message.content, [(call.name, call.arguments) for call in message.tool_calls]

        whole = await manager.generate(request())
        assert parts(whole.message) == ("", [("get_weather", '{"city": "aa"}')])
        for most in range(1, len(whole.token_ids) + 1):
            cut = await manager.generate(request(most))
            async with manager.stream(request(most)) as stream:
                streamed = join([delta.message async for delta in stream])
            assert parts(cut.message) == parts(streamed)
            assert cut.message.content == ""
            for _, arguments in parts(cut.message)[1]:
                assert '{"city": "aa"}'.startswith(arguments)


@pytest.mark.anyio
async def test_with_auto_a_tool_is_called_until_its_result_has_come():
    tools = Tools(functions=[{"name": "f", "parameters": {"not": {}}}])
    messages = [{"role": "user", "content": "hi"}]
    async with EngineManager(SimulatedEngine(SimulatedConfig(time_scale=0))) as manager:
        answer = await manager.generate(GenerationRequest(messages=messages, tools=tools))
        (call,) = answer.message.tool_calls
        assert (call.name, call.arguments) == ("f", "{}")
        messages = [*messages, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        answer = await manager.generate(GenerationRequest(messages=messages, tools=tools))
        assert answer.message is None
        assert answer.text
        # A forced call conforms to its schema.
        with pytest.raises(InvalidRequest, match="not: not supported") as caught:
            await manager.generate(GenerationRequest(messages=messages, tools=Tools(functions=tools.functions, choice="required")))
        assert caught.value.param == "tools"


@pytest.mark.parametrize(("bounds", "is_rewritten"), [({"maxLength": 128}, True), ({"maxLength": 129}, False), ({"minLength": 129}, False)])
def test_lengths_become_a_pattern_only_where_its_steps_are_cheap(bounds, is_rewritten):
    """With a pattern of more than 128 repetitions, each of xgrammar's steps costs 20 ms."""
    narrowed = hold({"type": "string", **bounds}).narrowed
    assert ("pattern" in narrowed) == is_rewritten
    assert is_rewritten or narrowed == {"type": "string", **bounds}
