"""Requests in OpenAI's format: every hostile body gets an InvalidRequest and no other error."""

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.requests import nested

from frontends.access.caller import Caller
from frontends.openai.chat import ChatRequest
from frontends.openai.completions import CompletionRequest
from frontends.openai.decoding import decode
from llmserve import GenerationRequest, InvalidRequest

COMPLETION = msgspec.json.Decoder(CompletionRequest)
CHAT = msgspec.json.Decoder(ChatRequest)
USER = [{"role": "user", "content": "hi"}]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def tool(name, parameters=None):
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


TOOL = tool("f")


def completion(**fields):
    return decode(COMPLETION, json.dumps({"prompt": "hi", **fields}).encode()).generation_requests(Caller())


def chat(**fields):
    return decode(CHAT, json.dumps({"messages": USER, **fields}).encode()).generation_requests(Caller())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
fields = st.dictionaries(
    st.sampled_from([*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__]) | st.text(max_size=8), json_values, max_size=5
)


@given(fields, st.sampled_from([COMPLETION, CHAT]))
def test_any_json_object_is_a_request_or_a_named_error(body, decoder):
    base = {"prompt": "hi"} if decoder is COMPLETION else {"messages": USER}
    try:
        requests = decode(decoder, json.dumps({**base, **body}).encode()).generation_requests(Caller())
    except InvalidRequest as error:
        assert str(error)
    else:
        assert all(isinstance(request, GenerationRequest) for request in requests)


@given(st.binary(max_size=50))
def test_any_bytes_are_a_request_or_an_error(body):
    """Hypothesis also uses bytes from our modules, and some of them are a valid request."""
    with suppress(InvalidRequest):
        assert decode(COMPLETION, body).generation_requests(Caller())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"{} {}", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "\\ud800"}'])
def test_a_body_that_is_not_a_json_object_is_refused(body):
    with pytest.raises(InvalidRequest):
        decode(COMPLETION, body).generation_requests(Caller())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_blamed_on_its_field(value):
    with pytest.raises(InvalidRequest) as caught:
        decode(COMPLETION, f'{{"prompt": "hi", "temperature": {value}}}'.encode()).generation_requests(Caller())
    assert caught.value.param == "temperature"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"n": 2**63}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "3"}, "n"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": ["x"] * 64, "n": 3}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"temperature": "0.5"}, "temperature"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"stream_options": {"include": True}}, "stream_options"),
        ({"best_of": 5}, "best_of"),
        ({"chat_template": "x"}, "chat_template"),
        ({"logits_processors": []}, "logits_processors"),
    ],
)
def test_a_bad_completion_field_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        completion(**body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": USER * 2049}, "messages"),
        ({"messages": [{"role": "x", "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": []}, "tools"),
        ({"tools": [TOOL] * 2}, "tools"),
        ({"tools": [tool(f"f{number}") for number in range(129)]}, "tools"),
        ({"tools": [tool("a b")]}, "tools"),
        ({"tools": [tool("")]}, "tools"),
        ({"tools": [tool("a" * 65)]}, "tools"),
        ({"tools": [tool("f", {"$ref": "http://127.0.0.1/"})]}, "tools"),
        ({"tools": [tool("f", nested(33))]}, "tools"),
        ({"tools": [tool("f", nested(200))]}, "tools"),
        ({"tools": [tool("f", {"description": "x" * 65_536})]}, "tools"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "hi", "tool_calls": [CALL]}]}, "messages"),
    ],
)
def test_a_bad_chat_field_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**body)
    assert caught.value.param == param
    assert str(caught.value)


def test_fields_for_openai_s_bookkeeping_are_ignored():
    completion(store=True, metadata={"a": "b"}, service_tier="auto", safety_identifier="x", prompt_cache_key="y")


def test_the_service_tier_flex_is_best_effort():
    assert [request.best_effort for request in completion(service_tier="flex")] == [True]
    assert [request.best_effort for request in completion(service_tier="default")] == [False]
    with pytest.raises(InvalidRequest) as caught:
        completion(service_tier="soon")
    assert caught.value.param == "service_tier"


def test_choices_of_a_seeded_request_differ_by_their_seed_and_repeat():
    assert [request.sampling.seed for request in completion(n=3, seed=5)] == [5, 6, 7]
    assert [request.sampling.seed for request in completion(n=2, seed=2**63 - 1)] == [2**63 - 1, -(2**63)]
    assert [request.sampling.seed for request in completion(n=2)] == [None, None]


def test_prompts_come_in_order_with_their_choices_together():
    requests = completion(prompt=["a", "b"], n=2)
    assert [request.prompt for request in requests] == ["a", "a", "b", "b"]


def test_text_parts_are_joined_and_developers_are_the_system():
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    (request,) = chat(messages=messages)
    assert request.messages == ({"role": "system", "content": "be brief"}, {"role": "user", "content": "one\ntwo"})


def test_the_user_is_the_tenant():
    (request,) = chat(user="alice")
    assert request.tenant == "alice"
    (request,) = chat()
    assert request.tenant == "default"


def test_max_completion_tokens_wins():
    (request,) = chat(max_tokens=5, max_completion_tokens=6)
    assert request.sampling.max_tokens == 6


def test_tools_become_the_library_s_tools():
    (request,) = chat(tools=[TOOL, tool("g")])
    assert (request.tools.choice, request.tools.name, request.tools.parallel) == ("auto", None, True)
    assert [function["name"] for function in request.tools.functions] == ["f", "g"]
    named = {"type": "function", "function": {"name": "g"}}
    (request,) = chat(tools=[TOOL, tool("g")], tool_choice=named, parallel_tool_calls=False)
    assert (request.tools.choice, request.tools.name, request.tools.parallel) == ("named", "g", False)
    (request,) = chat(tools=[TOOL], tool_choice="none", response_format={"type": "json_object"})
    assert request.tools.choice == "none"
    assert chat(tool_choice="none")[0].tools is None


def test_an_earlier_answer_can_be_sent_back_unchanged():
    messages = [
        *USER,
        {"role": "assistant", "content": None, "refusal": None, "reasoning": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    (request,) = chat(messages=messages)
    assert request.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning": "hm"}
    assert request.messages[2] == {"role": "tool", "tool_call_id": "1", "content": "sunny"}
