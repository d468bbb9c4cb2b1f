"""Requests that common clients send: extra fields, messages of earlier answers, other spellings."""

import json
from typing import Any

import msgspec
import openai
import pytest
from http_support import running_server
from openai.types.chat import ChatCompletion, ParsedChatCompletion
from yarl import URL

from frontends.access.caller import Caller
from frontends.openai.chat import ChatRequest
from frontends.openai.completions import CompletionRequest, TextResponseBuilder
from frontends.openai.decoding import decode
from frontends.openai.requests import GenerateRequest
from llmserve import AdmissionConfig, Delta, InvalidRequest, ManagerConfig, TokenLogprob

USER: Any = {"role": "user", "content": "hi"}


def requests(kind, body, caller=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode(msgspec.json.Decoder(kind), raw).generation_requests(caller or Caller())


def chat(**fields):
    (request,) = requests(ChatRequest, {"messages": [USER], **fields})
    return request


def completion(**fields):
    (request,) = requests(CompletionRequest, {"prompt": "hi", **fields})
    return request


def answer(kind, **message):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello", **message}}
    return kind.model_validate({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


@pytest.mark.parametrize("kind", [ChatCompletion, ParsedChatCompletion[dict]])
@pytest.mark.parametrize("message", [{}, {"reasoning": "hm"}, {"content": None, "refusal": "no"}, {"annotations": []}])
def test_the_message_of_an_answer_is_sent_back_as_openai_s_client_has_it(kind, message):
    dumped = answer(kind, **message).choices[0].message.model_dump()
    request = chat(messages=[USER, dumped, USER])
    assert request.messages[1]["role"] == "assistant"


def test_a_parsed_call_of_a_tool_is_sent_back():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}
    parsed = answer(ParsedChatCompletion[dict], content=None, tool_calls=[call]).choices[0].message.model_dump()
    request = chat(messages=[USER, parsed, {"role": "tool", "tool_call_id": "1", "content": "x"}])
    assert request.messages[1]["tool_calls"][0]["function"]["name"] == "f"


@pytest.mark.parametrize("sent", [{"reasoning": "hm"}, {"reasoning_content": "hm"}, {"reasoning": "hm", "reasoning_content": "other"}])
def test_names_and_reasoning_reach_the_template(sent):
    request = chat(messages=[{**USER, "name": "ann"}, {"role": "assistant", "content": "a", **sent}, USER])
    assert [(message.get("name"), message.get("reasoning")) for message in request.messages] == [("ann", None), (None, "hm"), (None, None)]


@pytest.mark.parametrize("kind", ["image_embeds", "image_pil", "input_audio", "video_url", "file"])
def test_a_part_that_is_neither_text_nor_image_is_refused_by_its_type(kind):
    with pytest.raises(InvalidRequest, match=f"the type '{kind}' is not supported") as caught:
        chat(messages=[{"role": "user", "content": [{"type": kind, kind: {"url": "http://127.0.0.1/"}}]}])
    assert caught.value.param == "messages"


def test_all_types_that_vllm_renders_as_text_are_accepted():
    parts = ["a", {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}, {"type": "input_text", "text": "c"}]
    request = chat(messages=[{"role": "user", "content": parts, "cache_control": {"type": "ephemeral"}}])
    assert request.messages[0]["content"] == "a\nb\nc"


def test_a_tool_s_cache_control_reaches_no_template():
    mark = {"cache_control": {"type": "ephemeral"}}
    request = chat(tools=[{"type": "function", "function": {"name": "f", "parameters": None, **mark}, **mark}])
    assert [dict(function) for function in request.tools.functions] == [{"name": "f"}]


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False, "date": "today"}}, {"enable_thinking": False, "date": "today"}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True, "reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "reasoning_effort": "none"}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            {"enable_thinking": False, "reasoning_effort": "low"},
        ),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"add_generation_prompt": False, "continue_final_message": True}),
        ({"continue_final_message": False, "add_generation_prompt": True}, {"add_generation_prompt": True}),
    ],
)
def test_fields_of_the_template_are_its_arguments(fields, arguments):
    assert chat(**fields).template_kwargs == arguments


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"tools": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "x" * 1025}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {f"a{number}": 1 for number in range(33)}}, "chat_template_kwargs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_a_forbidden_template_argument_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("value", ["16.0", "16.000", "16"])
def test_a_whole_number_may_have_a_point(value):
    (request,) = requests(CompletionRequest, b'{"prompt": "hi", "max_tokens": %b, "temperature": 1.0}' % value.encode())
    assert request.sampling.max_tokens == 16
    assert completion(max_tokens=5.0, n=1.0).sampling.max_tokens == 5
    generate = decode(msgspec.json.Decoder(GenerateRequest), b'{"prompt": "hi", "max_tokens": %b}' % value.encode())
    assert generate.generation_request(Caller()).sampling.max_tokens == 16


@pytest.mark.parametrize("value", ["16.5", '"16.0"', "1e1", "true"])
def test_another_number_is_refused_by_its_field(value):
    with pytest.raises(InvalidRequest) as caught:
        requests(CompletionRequest, b'{"prompt": "hi", "max_tokens": %b}' % value.encode())
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatRequest, {"messages": [USER], "functions": None}),
        (ChatRequest, {"messages": [USER], "max_tokens": 16.0}),
        (CompletionRequest, {"prompt": "hi", "best_of": None}),
        (CompletionRequest, {"prompt": "hi", "max_tokens": 16.0}),
    ],
)
def test_an_error_names_the_misspelt_field_and_not_an_accepted_one_before_it(kind, body):
    with pytest.raises(InvalidRequest, match="unknown field `temprature`") as caught:
        requests(kind, {**body, "temprature": 1})
    assert caught.value.param == "temprature"


def test_a_byte_order_mark_is_accepted():
    (request,) = requests(CompletionRequest, b'\xef\xbb\xbf{"prompt": "hi"}')
    assert request.prompt == "hi"


def test_no_alternatives_need_no_logprobs():
    assert chat(top_logprobs=0).sampling.logprobs is None
    assert chat(service_tier="scale").best_effort is False


def test_neutral_values_in_a_large_body_are_accepted_too():
    long = "word " * 10_000
    assert chat(messages=[{"role": "user", "content": long}], functions=None, audio=None, max_tokens=4.0).messages[0]["content"] == long


def test_the_chosen_token_is_among_its_alternatives_and_the_best_of_equal_texts_counts():
    top = (TokenLogprob(1, "a", -0.1), TokenLogprob(2, "a", -2.0), TokenLogprob(3, "b", float("-inf")))
    choice = TextResponseBuilder("1", "m").chunk_choice(0, Delta("c", (9,), None, None, (TokenLogprob(9, "c", float("-inf"), top),)))
    assert choice.logprobs.top_logprobs == [{"a": -0.1, "b": -9999.0, "c": -9999.0}]
    assert choice.logprobs.token_logprobs == [-9999.0]


@pytest.fixture
async def server():
    async with running_server() as server:
        yield server


@pytest.mark.parametrize("dump", [lambda message: message, lambda message: message.model_dump(), lambda message: message.to_dict()])
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
async def test_a_conversation_continues_with_the_message_in_each_form_that_clients_send(server, way, dump):
    """`stream` adds an `index` to calls, and `parse` adds parsed values to calls and messages."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chats: Any = client.chat.completions
        asked = {"model": "sim", "messages": [USER], "tools": [tool]}
        if way == "stream":
            async with chats.stream(**asked) as stream:
                answer = await stream.get_final_completion()
        else:
            answer = await getattr(chats, way)(**asked)
        message = answer.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "1"}
        again = await chats.create(**asked | {"messages": [USER, dump(message), result]}, max_tokens=2)
    assert again.choices[0].message.content


# A schema that a server would have to download.
ELSEWHERE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x"}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "headers", "param"),
    [
        ("/v1/chat/completions", {"messages": [USER], "response_format": ELSEWHERE}, {}, "response_format"),
        ("/v1/completions", {"prompt": "x", "response_format": ELSEWHERE}, {}, "response_format"),
        ("/v1/chat/completions", {"messages": [USER], "max_completion_tokens": -1}, {}, "max_completion_tokens"),
        ("/v1/completions", {"prompt": "x"}, {"X-Request-Timeout": "-1"}, "X-Request-Timeout"),
        ("/v1/completions", {"prompt": "x"}, {"X-Request-Timeout": "nan"}, "X-Request-Timeout"),
        ("/generate", {"prompt": "x"}, {"X-Request-Timeout": "-1"}, "X-Request-Timeout"),
        ("/generate", {"prompt": "x", "deadline": -1}, {}, "deadline"),
    ],
)
async def test_an_error_names_the_field_that_was_sent(server, path, body, headers, param, stream):
    status, found, _ = await server.post(path, {**body, "stream": stream}, headers=headers)
    assert (status, found["error"]["param"]) == (400, param), found
    assert param in found["error"]["message"]


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": [USER]})])
async def test_max_tokens_beyond_the_context_ends_where_the_context_does(server, path, body):
    context = server.manager.info.max_model_len
    status, found, _ = await server.post(path, {**body, "max_tokens": 10**9, "ignore_eos": True})
    assert status == 200
    assert found["usage"]["total_tokens"] == context
    assert found["choices"][0]["finish_reason"] == "length"


async def test_a_bound_beyond_the_context_does_not_count_for_logprobs(server):
    body = {"prompt": "x" * (server.manager.info.max_model_len - 8), "max_tokens": 10**9, "logprobs": 5, "n": 2}
    status, found, _ = await server.post("/v1/completions", body)
    assert status == 200, found


async def test_the_error_for_a_prompt_beyond_the_context_has_the_text_that_clients_look_for(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="This model's maximum context length is") as caught:
            await client.completions.create(model="sim", prompt="x" * server.manager.info.max_model_len)
    assert "Please reduce the length of the input prompt." in caught.value.message
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "chat"])
async def test_logprobs_name_tokens_by_their_ids(server, path, stream):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        more: dict[str, Any] = {"model": "sim", "max_tokens": 3, "stream": stream, "extra_body": {"return_tokens_as_token_ids": True}}
        if path == "chat":
            found = await client.chat.completions.create(messages=[USER], logprobs=True, top_logprobs=1, **more)
        else:
            found = await client.completions.create(prompt="x", logprobs=1, **more)
        chunks = [chunk async for chunk in found] if stream else [found]
    logprobs = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    tokens = [token for one in logprobs for token in (one.tokens if path != "chat" else [entry.token for entry in one.content])]
    assert len(tokens) == 3
    assert all(token.removeprefix("token_id:").isdigit() and token.startswith("token_id:") for token in tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_scored_without_an_answer(server, stream):
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream, "stream_options": {"include_usage": True}}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = await client.completions.create(model="sim", **(body if stream else {**body, "stream_options": openai.omit}))
        chunks = [chunk async for chunk in found] if stream else [found]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "abc"
    tokens = [token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.tokens]
    assert tokens == ["a", "b", "c"]
    assert chunks[-1].usage.completion_tokens == 0


async def test_a_slash_at_the_end_leads_to_the_route(server):
    status, _, _ = await server.post("/v1/completions/", {"prompt": "x", "max_tokens": 1})
    assert status == 200
    async with server.session.get("/v1/models/") as response:
        assert response.status == 200


async def test_a_redirect_keeps_the_query_as_it_was_sent(server):
    """A regression: a decoded line break broke the connection off without an answer."""
    url = URL(f"{server.url}/v1/models/?a=%0d%0ab", encoded=True)
    async with server.session.get(url, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "/v1/models?a=%0d%0ab")


async def test_an_unknown_path_names_the_paths(server):
    status, found, _ = await server.post("/v1/v1/chat/completions", {"messages": [USER]})
    assert status == 404
    assert "/v1/chat/completions" in found["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("admission", [AdmissionConfig(max_running=2, max_waiting=3), AdmissionConfig(tenant_limit=5)])
async def test_more_choices_than_an_idle_server_can_take_are_400_with_the_limit(path, stream, admission):
    body = {"prompt": "x"} if path == "/v1/completions" else {"messages": [USER]}
    config = ManagerConfig(admission=admission)
    async with running_server(config=config, max_num_seqs=2) as server:
        status, found, _ = await server.post(path, {**body, "n": 6, "max_tokens": 1, "stream": stream})
        assert (status, found["error"]["param"]) == (400, "n")
        assert "at most 5" in found["error"]["message"]
        status, found, _ = await server.post(path, {**body, "n": 5, "max_tokens": 1})
        assert (status, len(found["choices"])) == (200, 5)
