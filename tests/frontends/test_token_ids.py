"""vLLM's extras of an answer: token ids, the prompt's logprobs, and rules for tokens."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from http_support import running_server

from frontends.access.caller import Caller
from frontends.openai.chat import ChatRequest, ChatResponseBuilder
from frontends.openai.sizes import check_answer

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}
TEXT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.fixture
async def server():
    async with running_server() as server:
        yield server


async def chunks(server, path, body):
    async with server.session.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200
        payloads = [block.removeprefix("data: ") for block in (await response.text()).split("\n\n")[:-1]]
    return [msgspec.json.decode(payload) for payload in payloads[:-1]]


@pytest.mark.parametrize("path", ROUTES)
async def test_whole_answers_have_the_fields_and_null_without_a_request_for_them(server, path):
    _, body, _ = await server.post(path, ROUTES[path])
    place = body if "chat" in path else body["choices"][0]
    assert (place["prompt_token_ids"], place["prompt_logprobs"], body["choices"][0]["token_ids"]) == (None, None, None)
    assert not any("token_ids" in str(chunk) for chunk in await chunks(server, path, ROUTES[path]))


@pytest.mark.parametrize("path", ROUTES)
async def test_a_stream_has_the_token_ids_of_the_whole_answer(server, path):
    asked = {**ROUTES[path], "return_token_ids": True}
    _, whole, _ = await server.post(path, asked)
    place = whole if "chat" in path else whole["choices"][0]
    assert len(place["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]
    first, *others = await chunks(server, path, asked)
    opening = first if "chat" in path else first["choices"][0]
    assert opening["prompt_token_ids"] == place["prompt_token_ids"]
    assert not any("prompt_token_ids" in str(chunk) for chunk in others)
    ids = [token for chunk in [first, *others] for token in chunk["choices"][0].get("token_ids", ())]
    assert ids == whole["choices"][0]["token_ids"]
    assert len(ids) == 5


async def test_each_choice_of_completions_has_its_prompt_s_ids(server):
    _, body, _ = await server.post("/v1/completions", {**TEXT, "prompt": ["a", "bc"], "n": 2, "return_token_ids": True})
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == [[97], [97], [98, 99], [98, 99]]


@pytest.mark.parametrize("fields", [{"return_token_ids": True}, {"prompt_logprobs": 0}])
def test_a_chat_s_choices_repeat_no_prompt_and_fit_a_long_context(fields):
    """The engine computes the prompt's part only for the first choice."""
    wanted = msgspec.convert({**CHAT, **fields, "n": 100}, ChatRequest).wanted(Caller(), None)
    check_answer(wanted.requests, 2**20)
    asking = [one.return_prompt_ids or one.sampling.prompt_logprobs is not None for one in wanted.requests]
    assert asking == [True] + [False] * 99


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_of_several_choices_has_its_prompt_s_ids_once(server, stream):
    asked = {**CHAT, "n": 3, "return_token_ids": True}
    _, whole, _ = await server.post("/v1/chat/completions", asked)
    found = await chunks(server, "/v1/chat/completions", asked) if stream else [whole]
    assert [part["prompt_token_ids"] for part in found if "prompt_token_ids" in part] == [whole["prompt_token_ids"]]
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]
    assert {choice["index"] for part in found for choice in part["choices"] if choice.get("token_ids")} == {0, 1, 2}


def test_the_ids_come_with_the_first_event_whichever_choice_has_it():
    answerer = ChatResponseBuilder("x", "m")
    answerer.token_ids = True
    streams: list[Any] = [SimpleNamespace(prompt_token_ids=ids) for ids in ((1, 2), None)]
    answerer.begin(streams)
    assert b'"prompt_token_ids":[1,2]' in answerer.first(1)
    assert b"prompt_token_ids" not in answerer.first(0)


async def test_an_echo_without_generation_has_no_generated_token_ids(server):
    asked = {**TEXT, "max_tokens": 0, "echo": True, "return_token_ids": True}
    _, body, _ = await server.post("/v1/completions", asked)
    assert (body["choices"][0]["token_ids"], body["choices"][0]["prompt_token_ids"]) == ([], list(b"hello"))
    assert [chunk["choices"][0]["token_ids"] for chunk in await chunks(server, "/v1/completions", asked)] == [[], []]


async def test_incomplete_characters_lose_no_token_ids(server):
    """A token without text causes no event, unless its id was requested."""
    asked = {**TEXT, "allowed_token_ids": [0xC3], "max_tokens": 3, "return_token_ids": True}
    found = await chunks(server, "/v1/completions", asked)
    assert [token for chunk in found for token in chunk["choices"][0]["token_ids"]] == [0xC3] * 3


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("count", [0, 1, 3])
async def test_the_prompt_s_logprobs_are_by_token_id_with_ranks(server, path, count):
    _, body, _ = await server.post(path, {**ROUTES[path], "prompt_logprobs": count, "return_token_ids": True})
    place = body if "chat" in path else body["choices"][0]
    first, *others = place["prompt_logprobs"]
    assert first is None
    assert len(others) == len(place["prompt_token_ids"]) - 1
    for token, found in zip(place["prompt_token_ids"][1:], others, strict=True):
        assert found[str(token)]["decoded_token"] == chr(token)
        ranks = sorted(entry["rank"] for entry in found.values() if entry["rank"] is not None)
        assert len(set(ranks)) == len(ranks) <= count
        assert count <= 1 or len(found) > 1


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt_logprobs": -1}, "prompt_logprobs"),
        ("/v1/completions", {"prompt_logprobs": 21}, "prompt_logprobs"),
        ("/v1/completions", {"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": ["a" * 400] * 64, "prompt_logprobs": 20}, "n"),
        ("/v1/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("/v1/chat/completions", {"stream_options": {"include_usage": None}}, "stream_options"),
        ("/v1/completions", {"allowed_token_ids": []}, "allowed_token_ids"),
        ("/v1/completions", {"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ("/v1/completions", {"bad_words": [""]}, "bad_words"),
        ("/v1/completions", {"bad_words": ["a" * 70_000]}, "bad_words"),
        ("/v1/chat/completions", {"logit_bias": {"word": 1, "other": 2, "1": 3}}, "logit_bias"),
        # Digits of another script, which int() accepts.
        ("/v1/completions", {"logit_bias": {"\u0663": 1}}, "logit_bias"),
    ],
)
async def test_a_value_out_of_bounds_is_refused_by_name(server, path, fields, param):
    status, body, _ = await server.post(path, {**ROUTES[path], **fields})
    assert (status, body["error"]["param"]) == (400, param)


async def test_all_keys_of_logit_bias_that_are_not_ids_are_named(server):
    _, body, _ = await server.post("/v1/completions", {**TEXT, "logit_bias": {"word": 1, "other": 2, "1": 3}})
    assert "'word', 'other'" in body["error"]["message"]


async def test_as_many_prompts_as_fit_are_scored(server):
    _, body, _ = await server.post("/v1/completions", {**TEXT, "prompt": ["a" * 40] * 16, "prompt_logprobs": 1})
    assert [len(choice["prompt_logprobs"]) for choice in body["choices"]] == [40] * 16


@pytest.mark.parametrize("path", ROUTES)
async def test_forbidden_words_and_tokens_do_not_occur(server, path):
    _, body, _ = await server.post(path, {**ROUTES[path], "bad_words": [" the", "a", "e"], "max_tokens": 60, "ignore_eos": True})
    (choice,) = body["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert text
    assert not set("ae") & set(text)


@pytest.mark.parametrize("path", ROUTES)
async def test_running_usage_is_in_every_event_and_needs_include_usage(server, path):
    counts = [chunk["usage"]["completion_tokens"] for chunk in await chunks(server, path, {**ROUTES[path], **WITH_USAGE})]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    alone = {**WITH_USAGE, "stream_options": {"include_usage": False, "continuous_usage_stats": True}}
    assert not any("usage" in chunk for chunk in await chunks(server, path, {**ROUTES[path], **alone}))


@pytest.mark.parametrize(("last", "prefill"), [("assistant", "An apple a day"), ("user", "")])
async def test_an_echo_begins_a_chat_s_answer_with_the_assistant_s_last_message(server, last, prefill):
    asked = {
        **CHAT,
        "messages": [{"role": "user", "content": "hi"}, {"role": last, "content": "An apple a day"}],
        "continue_final_message": True,
    }
    _, plain, _ = await server.post("/v1/chat/completions", asked)
    _, whole, _ = await server.post("/v1/chat/completions", {**asked, "echo": True})
    content = whole["choices"][0]["message"]["content"]
    assert content == prefill + plain["choices"][0]["message"]["content"]
    first, *others = await chunks(server, "/v1/chat/completions", {**asked, "echo": True})
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in others]
    assert first["choices"][0]["delta"]["content"] + "".join(deltas) == content


BATCH = "/v1/chat/completions/batch"


async def test_a_batch_has_a_choice_for_each_conversation(server):
    chats = [[{"role": "user", "content": text}] for text in ("hi", "a longer text", "hi")]
    _, body, _ = await server.post(BATCH, {**CHAT, "messages": chats, "logprobs": True, "return_token_ids": True})
    singles = [(await server.post("/v1/chat/completions", {**CHAT, "messages": chat}))[1] for chat in chats]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    contents = [choice["message"]["content"] for choice in body["choices"]]
    assert contents == [single["choices"][0]["message"]["content"] for single in singles]
    assert body["usage"]["prompt_tokens"] == sum(single["usage"]["prompt_tokens"] for single in singles)
    assert all(len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == 5 for choice in body["choices"])
    assert body["prompt_token_ids"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": [CHAT["messages"]] * 65}, "messages"),
        ({"messages": CHAT["messages"]}, "messages"),
        ({"stream": True}, "stream"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
async def test_a_wrong_field_of_a_batch_is_named(server, fields, param):
    status, body, _ = await server.post(BATCH, {"messages": [CHAT["messages"]], "max_tokens": 1, **fields})
    assert (status, body["error"]["param"]) == (400, param)
