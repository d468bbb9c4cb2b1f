"""A server behind proxies: its clients' addresses and limits, and the path prefix."""

import argparse
import json

import anyio
import pytest
from engines import ScriptedEngine
from http_support import running_server
from program_support import fetch, program

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.http.proxies import Proxies, know_clients, parse_network
from frontends.http.settings import parse_root_path
from frontends.net.connection_limits import ConnectionLimiter

pytestmark = pytest.mark.anyio
TEXT = {"prompt": "hi", "max_tokens": 2}
# The test's client is one of them.
TRUSTED = Proxies.of([parse_network("127.0.0.1"), parse_network("10.0.0.0/8")])


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.7"], "203.0.113.9"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        ("127.0.0.1", ["6.6.6.6", "198.51.100.7, 10.1.2.3"], "198.51.100.7"),
        ("127.0.0.1", ["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
        ("127.0.0.1", ["6.6.6.6, unknown, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("127.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("::ffff:127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy_s(peer, forwarded, client):
    assert TRUSTED.client_of(peer, forwarded) == client


def test_the_other_end_of_a_unix_socket_is_trusted_by_name():
    assert Proxies.of([parse_network("unix")]).client_of("", ["198.51.100.7"]) == "198.51.100.7"


@pytest.mark.parametrize("text", ["", "nginx", "10.0.0.1/8", "10.0.0", "*"])
def test_an_invalid_network_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not an address or a network"):
        parse_network(text)


async def test_the_log_names_the_proxy_s_client_and_its_scheme():
    lines = []
    forwarded = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
    for trusted in (TRUSTED, Proxies()):
        async with running_server(app={"clients": know_clients(trusted, ConnectionLimiter()), "log": lines.append}) as server:
            assert (await server.post("/v1/completions", TEXT, headers=forwarded))[0] == 200
    found = [(line["peer"], line["scheme"]) for line in map(json.loads, lines)]
    assert found == [("198.51.100.7", "https"), ("127.0.0.1", "http")]


async def test_each_client_of_a_proxy_has_the_bound_of_one_address():
    """By the proxy's address, all of its clients would share one limit."""
    limiter = ConnectionLimiter(most=8, most_of_peer=1, is_proxy=TRUSTED.trusts)
    first, second = ({"X-Forwarded-For": address} for address in ("198.51.100.7", "198.51.100.8"))
    async with running_server(ScriptedEngine(), app={"clients": know_clients(TRUSTED, limiter)}, limiter=limiter) as server:
        async with server.session.post("/v1/completions", json={**TEXT, "stream": True}, headers=first) as response:
            assert response.status == 200
            status, body, headers = await server.post("/tokenize", {"prompt": "hi"}, headers=first)
            assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "too_many_connections", "1")
            assert (await server.post("/tokenize", {"prompt": "hi"}, headers=second))[0] == 200
        with anyio.fail_after(10):
            while (await server.post("/tokenize", {"prompt": "hi"}, headers=first))[0] != 200:
                await anyio.sleep(0.01)


def test_connections_of_a_trusted_proxy_do_not_share_one_client_s_limit():
    limiter = ConnectionLimiter(most=8, most_of_peer=1, is_proxy=TRUSTED.trusts)
    assert [limiter.enter(peer) for peer in ("10.0.0.1", "10.0.0.1", "203.0.113.9", "203.0.113.9")] == [True, True, True, False]


async def test_paths_are_served_below_the_root_path_and_without_it():
    async with running_server(app={"root_path": "/llm", "access": Access(Keys.single("secret"))}) as server:
        for root in ("", "/llm"):
            async with server.session.get(f"{root}/health/ready") as response:
                assert response.status == 200
            async with server.session.get(f"{root}/v1/models") as response:
                assert response.status == 401
            status, _, _ = await server.post(f"{root}/v1/completions", TEXT, headers={"Authorization": "Bearer secret"})
            assert status == 200
            async with server.session.get(f"{root}/openapi.json", headers={"Authorization": "Bearer secret"}) as response:
                document = await response.json()
            assert document["servers"] == [{"url": "/llm"}]
            assert "/v1/completions" in document["paths"]


async def test_below_a_root_path_a_final_slash_redirects_and_an_unknown_path_names_the_nearest_one():
    async with running_server(app={"root_path": "/llm/of/ours"}) as server:
        assert (await server.post("/llm/of/ours/v1/completions/", TEXT))[0] == 200
        for path in ("/llm/of/ours/v1/v1/completions", "/v1/v1/completions"):
            status, body, _ = await server.post(path, TEXT)
            assert status == 404
            assert "do you mean /v1/completions?" in body["error"]["message"]
            assert "/llm" not in body["error"]["message"]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_program_s_options_hold_in_each_of_its_processes(tmp_path, workers):
    log, page = tmp_path / "log", "https://app.example"
    options = ("--root-path", "/llm", "--trusted-proxy", "127.0.0.1", "--allowed-origin", page, "--keepalive-interval", "0.01")
    # The first token comes long after the interval between comments.
    slow = ("--engine-arg", "step_seconds=0.3", "--request-log", str(log), "--workers", workers)
    async with program(tmp_path, *options, *slow) as (_, url, _):

        async def ask():
            headers = {"Origin": page, "X-Forwarded-For": "198.51.100.7"}
            status, text = await fetch(f"{url}/llm/v1/completions", {**TEXT, "stream": True}, headers)
            assert status == 200
            assert text.startswith(b":")
            assert (await fetch(f"{url}/llm/v1/completions", TEXT, {"Origin": "https://evil.example"}))[0] == 403

        # A connection goes to the worker with the fewest.
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
        with anyio.fail_after(10):
            while len(lines := log.read_text().splitlines() if log.exists() else ()) < 8:
                await anyio.sleep(0.01)
    assert [line["peer"] for line in map(json.loads, lines) if line["status"] == 200] == ["198.51.100.7"] * 4


def test_a_root_path_is_a_path():
    assert [parse_root_path(text) for text in ("", "/", "/llm/", "/a/b")] == ["", "", "/llm", "/a/b"]
    for text in ("llm", "http://x/llm", "/a b", "//x"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a valid path prefix"):
            parse_root_path(text)
