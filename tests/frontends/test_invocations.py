"""POST /invocations: each body is answered as on its own route."""

import pytest
from http_support import running_server

PATH = "/invocations"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0}


def same(answer):
    """Return what two answers to one request have in common; the second one has cached tokens in its usage."""
    return {name: value for name, value in answer.items() if name not in ("id", "created", "usage")}


@pytest.mark.parametrize(
    ("task", "path", "body"),
    [
        ("generate", "/v1/chat/completions", CHAT),
        ("generate", "/v1/chat/completions", {**CHAT, "prompt": None}),
        ("generate", "/v1/completions", {"prompt": "hi", "max_tokens": 3, "temperature": 0, "messages": None}),
        ("embed", "/v1/embeddings", {"input": "hi"}),
        ("classify", "/classify", {"input": "hi"}),
        ("embed", "/rerank", {"query": "hi", "documents": ["a", "b"]}),
        ("embed", "/score", {"queries": "hi", "documents": ["a", "b"]}),
        ("classify", "/score", {"text_1": "hi", "text_2": "a"}),
        ("classify", "/score", {"data_1": "hi", "data_2": "a"}),
        ("generate", "/v1/completions", {"prompt": "hi", "no_such_field": 1}),
        ("generate", "/v1/chat/completions", {"messages": "hi"}),
    ],
)
async def test_a_body_is_answered_as_on_its_own_route(task, path, body):
    async with running_server(tasks=[task]) as server:
        (status, expected, _), (found, answer, _) = [await server.post(one, body) for one in (path, PATH)]
    assert (found, same(answer)) == (status, same(expected))


async def test_a_stream_and_a_repeated_request():
    async with running_server() as server:
        async with server.session.post(PATH, json={**CHAT, "stream": True}) as response:
            assert (response.content_type, (await response.text()).splitlines()[-2]) == ("text/event-stream", "data: [DONE]")
        first, second = [(await server.post(PATH, CHAT, headers={"Idempotency-Key": "k"}))[1] for _ in range(2)]
        assert first == second


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"{}", "the body of /invocations needs one of the fields messages, prompt, input, query, queries, text_1, data_1"),
        (b'{"prompt": null}', "needs one of the fields"),
        (b'{"prompt"', "the body cannot be decoded"),
        (b"[]", "object"),
        (b"", "the body cannot be decoded"),
    ],
)
async def test_a_body_for_no_route_is_refused(sent, words):
    async with running_server() as server, server.session.post(PATH, data=sent, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
        assert words in (await response.json())["error"]["message"]
