"""Structured outputs on the wire: OpenAI's and vLLM's fields, and the field that an error names."""

import msgspec
import pytest

from frontends.access.caller import Caller
from frontends.openai.chat import ChatRequest
from frontends.openai.completions import CompletionRequest
from frontends.openai.decoding import decode
from frontends.openai.requests import GenerateRequest
from frontends.rawsocket.client_connection import wire_request
from llmserve import GenerationRequest, InvalidRequest, Sampling, StructuredOutputs

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
NEUTRAL = {
    "regex": None, "choice": None, "grammar": None, "json_object": None, "structural_tag": None, "whitespace_pattern": None,
    "disable_any_whitespace": False, "disable_additional_properties": False,
}  # fmt: skip
CHAT = msgspec.json.Decoder(ChatRequest)
COMPLETION = msgspec.json.Decoder(CompletionRequest)


def chat(**fields):
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    (request,) = decode(CHAT, msgspec.json.encode(body)).generation_requests(Caller())
    return request.sampling.structured_outputs


def completion(**fields):
    (request,) = decode(COMPLETION, msgspec.json.encode({"prompt": "hi", **fields})).generation_requests(Caller())
    return request.sampling


@pytest.mark.parametrize("make", [chat, lambda **fields: completion(**fields).structured_outputs], ids=["chat", "completions"])
def test_the_constraint_of_each_format(make):
    assert make() is None
    assert make(response_format={"type": "text"}) is None
    assert make(response_format={"type": "json_object"}) == StructuredOutputs.json_object()
    named = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    assert make(response_format=named) == StructuredOutputs.json(SCHEMA)
    assert make(structured_outputs={"json": SCHEMA}) == StructuredOutputs.json(SCHEMA)
    assert make(structured_outputs={"regex": "a+"}) == StructuredOutputs.regex("a+")
    assert make(structured_outputs={"choice": ["a", "b"]}) == StructuredOutputs.choice(["a", "b"])
    assert make(structured_outputs={"grammar": 'root ::= "a"'}) == StructuredOutputs.grammar('root ::= "a"')
    # With all fields of vLLM's types.
    assert make(structured_outputs={"json": SCHEMA} | NEUTRAL) == StructuredOutputs.json(SCHEMA)
    assert make(response_format={"type": "text", "json_schema": None}) is None
    assert make(response_format={"type": "json_object", "json_schema": None}) == StructuredOutputs.json_object()
    unset = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": None, "description": None}}
    assert make(response_format=unset) == StructuredOutputs.json(SCHEMA)
    assert make(response_format={"type": "text"}, structured_outputs={"json_object": True}) == StructuredOutputs.json_object()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x"}}}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
    ],
)
def test_an_error_names_the_field_that_the_caller_sent(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_a_bias_has_its_token_ids_as_json_writes_them():
    assert completion(logit_bias={"5": -1.5, "7": 100}).logit_bias == ((5, -1.5), (7, 100))


@pytest.mark.parametrize(
    "constraint",
    [
        StructuredOutputs.json(SCHEMA),
        StructuredOutputs.json_object(),
        StructuredOutputs.regex("a+"),
        StructuredOutputs.choice(["a", "ä"]),
        StructuredOutputs.grammar('root ::= "a"'),
    ],
    ids=lambda constraint: constraint.kind,
)
def test_a_raw_socket_server_reads_the_constraint_that_its_client_sends(constraint):
    sampling = Sampling(structured_outputs=constraint, logit_bias={5: 1.5})
    raw = msgspec.msgpack.encode(wire_request(GenerationRequest("hi", sampling=sampling)))
    assert decode(msgspec.msgpack.Decoder(GenerateRequest), raw).generation_request(Caller()).sampling == sampling
