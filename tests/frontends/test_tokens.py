"""/inference/v1/generate: tokens in, tokens out."""

import msgspec
import pytest
from http_support import running_server

PATH = "/inference/v1/generate"
IDS = [104, 101, 108, 108, 111]
FIELDS = {"max_tokens": 5, "temperature": 0}
TEXT = {"prompt": IDS, **FIELDS}


def asked(sampling=FIELDS, **more):
    return {"token_ids": IDS, "sampling_params": {**FIELDS, **sampling}, **more}


@pytest.fixture
async def server():
    async with running_server(adapters=("sql",)) as server:
        yield server


async def chunks(server, body):
    async with server.session.post(PATH, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        payloads = [block.removeprefix("data: ") for block in (await response.text()).split("\n\n")[:-1]]
    assert payloads[-1] == "[DONE]"
    return [msgspec.json.decode(payload) for payload in payloads[:-1]]


@pytest.mark.parametrize("mode", ["tokens", "text"])
async def test_the_answer_is_that_of_completions_whole_and_streamed(server, mode):
    _, other, _ = await server.post("/v1/completions", {**TEXT, "return_token_ids": True})
    (same,) = other["choices"]
    body = asked(output_mode=mode, return_token_ids=True, request_id="mine")
    _, whole, _ = await server.post(PATH, body)
    (choice,) = whole["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == (same["token_ids"], "length")
    assert (whole["prompt_token_ids"], whole["request_id"], whole["output_mode"], whole["usage"]) == (IDS, "mine", mode, other["usage"])
    assert choice.get("text") == (same["text"] if mode == "text" else None)
    first, *others = streamed = await chunks(server, body)
    assert [token for chunk in streamed for token in chunk["choices"][0]["token_ids"]] == choice["token_ids"]
    assert "".join(chunk["choices"][0].get("text", "") for chunk in streamed) == choice.get("text", "")
    assert (first["prompt_token_ids"], streamed[-1]["choices"][0]["finish_reason"]) == (IDS, "length")
    assert not any("prompt_token_ids" in chunk for chunk in others)


async def test_without_max_tokens_the_answer_may_fill_the_context(server):
    _, body, _ = await server.post(PATH, {"token_ids": IDS, "sampling_params": {"ignore_eos": True}})
    assert body["usage"]["total_tokens"] == server.manager.info.max_model_len


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_logprobs_are_by_id_and_begin_with_the_token_itself(server, count):
    body = asked({"logprobs": count})
    _, whole, _ = await server.post(PATH, body)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [entry["token_id"] for entry in content] == whole["choices"][0]["token_ids"]
    for entry in content:
        first, *others = entry["top_logprobs"]
        assert (first["token_id"], first["rank"]) == (entry["token_id"], 1 if count else None)
        assert all(other["rank"] > 1 for other in others)
        assert count or not others
    streamed = [entry for chunk in await chunks(server, body) for entry in chunk["choices"][0]["logprobs"]["content"]]
    assert [entry["token_id"] for entry in streamed] == whole["choices"][0]["token_ids"]
    _, named, _ = await server.post(PATH, {**body, "output_mode": "text"})
    assert all(entry["token"] == entry["top_logprobs"][0]["token"] for entry in named["choices"][0]["logprobs"]["content"])


async def test_the_prompt_s_logprobs_come_once(server):
    _, body, _ = await server.post(PATH, asked({"prompt_logprobs": 1, "n": 3, "temperature": 1}))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["prompt_logprobs"][0] is None
    assert [next(iter(entry)) for entry in body["prompt_logprobs"][1:]] == [str(token) for token in IDS[1:]]


async def test_usage_adapters_and_stop_strings(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *running, last = await chunks(server, asked(stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in running] == sorted(chunk["usage"]["completion_tokens"] for chunk in running)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)
    _, plain, _ = await server.post(PATH, asked())
    _, adapted, _ = await server.post(PATH, asked(model="sql"))
    assert adapted["model"] == "sql"
    assert adapted["choices"][0]["token_ids"] != plain["choices"][0]["token_ids"]
    _, text, _ = await server.post(PATH, asked(output_mode="text"))
    stop = text["choices"][0]["text"].split()[1]
    _, stopped, _ = await server.post(PATH, asked({"stop": [stop]}))
    assert (stopped["choices"][0]["finish_reason"], stopped["choices"][0]["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**asked(), "token_ids": []}, "token_ids"),
        ({**asked(), "token_ids": [-1]}, "token_ids"),
        ({**asked(), "token_ids": [10**6]}, "token_ids"),
        ({**asked(), "token_ids": [1] * 20_000}, "token_ids"),
        ({"token_ids": IDS}, "sampling_params"),
        (asked({"max_tokens": None, "min_tokens": 2**31}), "min_tokens"),
        (asked({"detokenize": False, "stop": ["x"]}), "stop"),
        (asked({"detokenize": False}, output_mode="text"), "detokenize"),
        (asked({"top_x": 1}), "sampling_params"),
        (asked({"n": 0}), "n"),
        (asked({"prompt_logprobs": 1}, stream=True), "prompt_logprobs"),
        (asked(stream_options={"include_usage": True}), "stream_options"),
        (asked(output_mode="derender"), "output_mode"),
        (asked(request_id="x" * 65), "request_id"),
        (asked(model="other"), "model"),
        (asked(kv_transfer_params={"a": 1}), "kv_transfer_params"),
        (asked(features={"mm_hashes": {}}), "features"),
        (asked(parse_context={}), "parse_context"),
    ],
)
async def test_a_wrong_field_is_refused_by_name(server, body, param):
    status, answer, _ = await server.post(PATH, body)
    assert (status, answer["error"]["param"]) == (404 if param == "model" else 400, param), answer
