"""/tokenize, /tokenizer_info, and the fields that change how a prompt is tokenized."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from engines import ScriptedEngine
from http_support import running_server
from socket_support import running_socket

from frontends.access.caller import Caller
from frontends.openai.tokenization import TokenizeRequest
from frontends.rawsocket.client import SocketClient
from llmserve import EngineManager, GenerationRequest, InvalidRequest
from llmserve.engines.vllm.info import tokenizer_settings

USER = [{"role": "user", "content": "hi"}]
TEXT = {"prompt": "abcdefgh", "max_tokens": 1, "temperature": 0, "return_token_ids": True}


@pytest.fixture
async def server():
    async with running_server(max_model_len=64) as server:
        yield server


async def test_token_strings_come_on_request(server):
    _, plain, _ = await server.post("/tokenize", {"prompt": "hi"})
    assert plain["token_strs"] is None
    _, named, _ = await server.post("/tokenize", {"prompt": "hi", "return_token_strs": True})
    assert (named["tokens"], named["token_strs"]) == ([104, 105], ["h", "i"])


async def test_the_tokenizer_describes_itself(server):
    async with server.session.get("/tokenizer_info") as response:
        assert (await response.json())["tokenizer_class"] == "simulated"


async def test_an_engine_without_a_vocabulary_says_so_by_field():
    async with running_server(ScriptedEngine()) as server:
        status, body, _ = await server.post("/tokenize", {"prompt": "hi", "return_token_strs": True})
        assert (status, body["error"]["param"]) == (400, "return_token_strs")
        async with server.session.get("/tokenizer_info") as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "tokenizer_info")


def test_a_conversation_s_fields_reach_its_request():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    fields = {"tools": tools, "add_special_tokens": True, "continue_final_message": True, "chat_template_kwargs": {"date": "today"}}
    request = msgspec.convert({"messages": USER, **fields}, TokenizeRequest).generation_request(Caller(tenant="a"))
    assert request.tools is not None
    assert request.tools.functions[0]["name"] == "f"
    assert request.add_special_tokens
    assert request.tenant == "a"
    assert request.template_kwargs == {"date": "today", "add_generation_prompt": False, "continue_final_message": True}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"prompt": "x", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"messages": USER, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"messages": USER, "add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"messages": USER, "chat_template": "x"}, "chat_template"),
        ({"messages": USER, "prompt": "x"}, "prompt"),
    ],
)
async def test_a_wrong_field_of_tokenize_is_named(server, body, param):
    status, answer, _ = await server.post("/tokenize", body)
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, b"fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, b"fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, b"abc"),
        ({"truncate_prompt_tokens": 8}, b"abcdefgh"),
        ({"truncate_prompt_tokens": -1}, b"abcdefgh"),
        ({"truncate_prompt_tokens": -1, "prompt": "x" * 100}, b"x" * 63),
        ({"truncate_prompt_tokens": 2, "prompt": [1, 2, 3]}, b"\2\3"),
        ({"truncate_prompt_tokens": 2, "prompt": [*range(1, 100)] * 100}, b"\x62\x63"),
    ],
)
async def test_a_prompt_is_truncated_on_request(server, fields, kept):
    status, body, _ = await server.post("/v1/completions", {**TEXT, **fields})
    assert status == 200, body
    assert body["choices"][0]["prompt_token_ids"] == list(kept)
    assert body["usage"]["prompt_tokens"] == len(kept)


async def test_a_conversation_is_truncated_too(server):
    fields = {
        "messages": [{"role": "user", "content": "long " * 30}],
        "max_tokens": 1,
        "return_token_ids": True,
        "truncate_prompt_tokens": 5,
    }
    _, body, _ = await server.post("/v1/chat/completions", fields)
    assert bytes(body["prompt_token_ids"]) == b"tant>"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncate_prompt_tokens": 65}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "middle"}, "truncation_side"),
        ({"truncate_prompt_tokens": 3, "echo": True}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 64, "prompt": "x" * 100}, "prompt"),
    ],
)
async def test_a_wrong_truncation_is_refused_by_name(server, fields, param):
    status, body, _ = await server.post("/v1/completions", {**TEXT, **fields})
    assert (status, body["error"]["param"]) == (400, param)


async def test_truncation_in_process_and_over_the_raw_socket():
    async with running_socket() as served:
        prompt = await served.manager.tokenize(GenerationRequest("abcdef", truncate_prompt_tokens=2))
        assert (prompt.token_ids, prompt.text) == ((101, 102), None)
        fields: dict[str, Any] = {"truncate_prompt_tokens": 4, "truncation_side": "right", "max_tokens": 1}
        async with SocketClient(served.addresses[0]) as client:
            assert (await client.generate("abcdef", **fields)).usage.prompt_tokens == 4
            with pytest.raises(InvalidRequest) as caught:
                await client.generate("abcdef", truncate_prompt_tokens=10**6)
            assert caught.value.param == "truncate_prompt_tokens"


def test_a_tokenizer_s_settings_are_plain_values_without_files():
    token = SimpleNamespace(content="<s>")
    tokenizer: Any = SimpleNamespace(
        chat_template="{{ x }}",
        init_kwargs={
            "vocab_file": "/models/v.json",
            "bos_token": token,
            "added_tokens_decoder": {1: token},
            "extra": [token, 1],
            "max": 2.5,
        },
    )
    assert tokenizer_settings(tokenizer) == {
        "bos_token": "<s>",
        "added_tokens_decoder": {"1": "<s>"},
        "extra": ["<s>", 1],
        "max": 2.5,
        "tokenizer_class": "SimpleNamespace",
        "chat_template": "{{ x }}",
    }


async def test_the_manager_returns_token_strings_and_settings():
    async with EngineManager.open(engine="simulated") as manager:
        assert await manager.token_strings([104, 105]) == ["h", "i"]
        assert "tokenizer_class" in await manager.tokenizer_info()
