"""The OpenAPI document matches the server: every route, every status, every answer's type.

`tox run -e fuzz` sends thousands of generated requests.
"""

import importlib.metadata

import msgspec
import pytest
from http_support import running_server

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.http.app import build_app
from frontends.http.authentication import PAGES
from frontends.http.health import check_of
from frontends.http.openapi import ERRORS, ChatAnswer, Completion, ModelList, TextAnswer, Tokens
from frontends.openai.errors import TABLE
from frontends.openai.tokens import TokensAnswer
from llmserve.runtime.version import __version__

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json"])
async def test_the_version_is_known_where_llmserve_is_not_installed(monkeypatch, path):
    """A regression: in a copy of the source, /metrics was a status 500."""

    def find(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", find)
    async with running_server() as server, server.session.get(path) as response:
        assert response.status == 200
        assert __version__ in await response.text()


@pytest.mark.parametrize("check", [None, 60.0])
async def test_every_route_is_in_it_and_no_other(check):
    async with running_server(app_of=lambda manager: {"check": check_of(manager, check)}) as server:
        async with server.session.get("/openapi.json") as response:
            document = await response.json()
        told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        routes = {
            (route.method, route.resource.canonical)
            for route in build_app(server.manager, check=check_of(server.manager, check)).router.routes()
        }
        pages = {("GET", path) for path in PAGES}
        assert told == {route for route in routes if route[0] != "HEAD"} - {("GET", "/openapi.json")} - pages
        assert "security" not in document
    assert {status for _, status, _, _ in TABLE} <= set(ERRORS)


async def test_it_lists_the_routes_that_require_a_key():
    async with running_server(app={"access": Access(Keys.single("k"))}) as server:
        async with server.session.get("/openapi.json", headers={"Authorization": "Bearer k"}) as response:
            document = await response.json()
    assert document["security"] == [{"key": []}]
    assert all(document["paths"][path]["get"]["security"] == [] for path in ("/health", "/health/live", "/health/ready"))
    assert "security" not in document["paths"]["/metrics"]["get"]


async def test_the_query_that_continues_a_stream_is_documented():
    async with running_server() as server, server.session.get("/openapi.json") as response:
        methods = (await response.json())["paths"]["/v1/responses/{response_id}"]
    names = {method: [one["name"] for one in operation["parameters"]] for method, operation in methods.items()}
    assert names == {"get": ["response_id", "stream", "starting_after"], "delete": ["response_id"]}


async def test_answers_have_the_documented_types():
    """Decode without allowing unknown fields."""
    user = [{"role": "user", "content": "hi"}]
    async with running_server() as server:
        for path, body, shape in (
            ("/v1/completions", {"prompt": "hi", "logprobs": 1}, TextAnswer),
            ("/v1/chat/completions", {"messages": user, "logprobs": True, "max_tokens": 2}, ChatAnswer),
            ("/generate", {"prompt": "hi", "max_tokens": 2, "logprobs": 1, "prompt_logprobs": 1}, Completion),
            ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"logprobs": 1, "prompt_logprobs": 1}}, TokensAnswer),
            ("/tokenize", {"prompt": "hi"}, Tokens),
        ):
            _, answer, _ = await server.post(path, body)
            assert again(answer, shape) == answer
        async with server.session.get("/v1/models") as response:
            answer = await response.json()
        assert again(answer, ModelList) == answer


def again(answer, shape):
    """Decode an answer as the type and encode it again."""
    return msgspec.json.decode(msgspec.json.encode(msgspec.convert(answer, shape)))
