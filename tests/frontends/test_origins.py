"""CORS requests and responses. tests/browser/test_cross_origin.py uses a real browser."""

import argparse

import pytest
from http_support import running_server

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.http.origins import parse_origin

pytestmark = pytest.mark.anyio
PAGE, OTHER = "https://app.example", "https://evil.example"
TEXT = {"prompt": "hi", "max_tokens": 2}


@pytest.fixture
def anyio_backend():
    return "asyncio"


def preflight(origin):
    # As OpenAI's client sends it from a browser.
    names = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    return {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names}


async def test_a_page_of_an_allowed_origin_sends_a_preflight_and_reads_answers_and_errors():
    async with running_server(app={"access": Access(Keys.single("secret")), "origins": [PAGE]}) as server:
        async with server.session.options("/v1/chat/completions", headers=preflight(PAGE)) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            assert response.headers["Access-Control-Allow-Headers"] == preflight(PAGE)["Access-Control-Request-Headers"]
            assert "Access-Control-Allow-Credentials" not in response.headers
        for headers, body, status in (
            ({"Authorization": "Bearer secret"}, TEXT, 200), ({"Authorization": "Bearer secret"}, {"prompt": 1.5}, 400), ({}, TEXT, 401),
            ({"Authorization": "Bearer secret"}, {**TEXT, "stream": True}, 200),
        ):  # fmt: skip
            async with server.session.post("/v1/completions", json=body, headers={"Origin": PAGE, **headers}) as response:
                found = response.headers
                assert response.status == status
            assert found["Access-Control-Allow-Origin"] == PAGE
            assert found["Vary"] == "Origin"
            assert "X-Request-Id" in found["Access-Control-Expose-Headers"]


async def test_a_page_may_use_the_methods_of_all_routes():
    """A regression: a page could not delete a file or a response."""
    async with running_server(app={"origins": [PAGE]}) as server:
        async with server.session.options(
            "/v1/responses/x", headers={**preflight(PAGE), "Access-Control-Request-Method": "DELETE"}
        ) as response:
            allowed = response.headers["Access-Control-Allow-Methods"].split(", ")
        async with server.session.get("/openapi.json") as response:
            paths = (await response.json())["paths"].values()
    assert {method.upper() for path in paths for method in path} == set(allowed)


async def test_a_page_of_another_origin_is_refused_and_reads_nothing():
    async with running_server(app={"origins": [PAGE]}) as server:
        async with server.session.options("/v1/completions", headers=preflight(OTHER)) as response:
            assert response.status == 403
            assert "Access-Control-Allow-Origin" not in response.headers
        for origin in (OTHER, "null", PAGE + ".evil.example", PAGE.replace("https", "http"), PAGE + ":8443"):
            status, body, headers = await server.post("/v1/completions", TEXT, headers={"Origin": origin})
            assert status == 403, origin
            assert body["error"]["code"] == "cross_origin"
            assert "--allowed-origin" in body["error"]["message"]
            assert "Access-Control-Allow-Origin" not in headers


async def test_a_star_allows_any_page():
    async with running_server(app={"origins": ["*"]}) as server:
        for origin in (PAGE, OTHER, "null"):
            status, _, headers = await server.post("/v1/completions", TEXT, headers={"Origin": origin})
            assert (status, headers["Access-Control-Allow-Origin"]) == (200, "*")


async def test_without_the_option_answers_have_no_cors_headers():
    async with running_server() as server:
        _, _, headers = await server.post("/v1/completions", TEXT)
        assert not {"Vary", "Access-Control-Allow-Origin"} & set(headers)


@pytest.mark.parametrize(
    "text", ["", "app.example", "https://app.example/", "https://", "ftp://x", "null", "https://*.example", "https://a b"]
)
def test_an_invalid_origin_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not an origin"):
        parse_origin(text)


def test_an_origin_is_compared_as_browsers_send_it():
    assert [parse_origin(text) for text in ("HTTPS://App.Example:8443", "http://[::1]:3000", "*")] == [
        "https://app.example:8443",
        "http://[::1]:3000",
        "*",
    ]
