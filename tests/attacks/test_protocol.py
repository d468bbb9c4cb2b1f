"""Malformed requests, whole and in pieces: a client error or a closed connection answers each.

The next request is served normally.
"""

import json
import logging
from pathlib import Path

import anyio
import pytest
from attacks.canary import SECRETS, check_error, probe
from attacks.protocol import BODY, CORPUS, chunked, get, post
from http_support import running_server
from quiescence import check_quiescent

from frontends.http.access_log import open_log
from llmserve import ConfigurationError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def speak(server, pieces):
    """Return the bytes that arrive until the connection ends or an answer is complete."""
    port = int(server.url.rsplit(":", 1)[1])
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        answer = b""
        with anyio.move_on_after(5) as late:
            try:
                for piece in pieces:
                    await stream.send(piece)
                while not whole(answer):
                    answer += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass
    assert not late.cancelled_caught, (b"".join(pieces)[:300], answer)
    return answer


def whole(answer):
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0])


def check(request, answer, expected):
    if not answer:
        assert None in expected, request[:200]
        return
    status = int(answer.split(b" ", 2)[1])
    assert status in expected, (request[:200], answer[:300])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Access-Control" not in head
    assert b"aiohttp" not in head
    if status >= 400:
        check_error(status, body, expected, request[:200])


@pytest.mark.parametrize("size", [None, 1, 7])
async def test_the_corpus(size, caplog):
    """Send a request whole, and in pieces of each size."""
    caplog.set_level(logging.INFO)
    async with running_server() as server:
        song = await probe(server)
        for request, expected in CORPUS:
            if size and len(request) > 4000:
                continue
            pieces = [request] if size is None else [request[start : start + size] for start in range(0, len(request), size)]
            # The server may refuse a request and close before its last piece arrives, and then the
            # answer is lost.
            refused = {None} if size and min(status or 0 for status in expected) >= 400 else set()
            check(request, await speak(server, pieces), expected | refused)
        assert await probe(server) == song
        with anyio.fail_after(10):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)
        check_quiescent(server.manager)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_body_is_requested_only_when_it_is_needed():
    async with running_server() as server:
        head = post(b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(BODY), b"", length=False)
        port = int(server.url.rsplit(":", 1)[1])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(head)
            assert await stream.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send(BODY)
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_ten_thousand_requests_in_a_row_are_answered_one_by_one():
    async with running_server() as server:
        port = int(server.url.rsplit(":", 1)[1])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream, anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, get(b"/health/live") * 10_000)
            found = 0
            with anyio.fail_after(50):
                while found < 10_000:
                    found += (await stream.receive()).count(b"HTTP/1.1 200 OK")
            assert found == 10_000


@pytest.mark.parametrize("name", ["x" * 65, "a b", "ä", "a\x1b[31m", "<script>", "a,b", ""])
async def test_a_request_s_name_is_its_client_s_only_where_it_is_one(name):
    async with running_server() as server:
        answer = await speak(server, [get(headers=f"X-Request-Id: {name}\r\n".encode())])
        found = [line for line in answer.split(b"\r\n") if line.startswith(b"X-Request-Id")]
        if answer.split(b" ")[1] == b"400":
            assert not found
        else:
            assert [len(line) for line in found] == [len(b"X-Request-Id: ") + 32]


async def test_a_shared_name_of_requests_grants_access_to_none():
    async with running_server() as server:
        names, texts = set(), set()

        async def ask(number):
            body = {"prompt": f"number {number}", "max_tokens": 4}
            status, answer, headers = await server.post("/v1/completions", body, headers={"X-Request-Id": "same"})
            assert status == 200
            assert headers["X-Request-Id"] == "same"
            names.add(answer["id"])
            texts.add(number)

        async with anyio.create_task_group() as tasks:
            for number in range(80):
                tasks.start_soon(ask, number)
        assert len(names) == len(texts) == 80


async def test_a_log_line_is_one_line_of_checked_values():
    lines = []
    secret = "a secret that is in the prompt"
    async with running_server(app={"log": lines.append}) as server:
        await server.post("/v1/completions", {"prompt": secret, "max_tokens": 2, "user": '\n{"level":"error"}'})
        await server.post("/v1/completions", {"prompt": secret, "model": "\x1b[31m\n\u2028"})
        await speak(server, [get(b"/\xe2\x80\xa8", method=b"BREW", headers=b'X-Request-Id: "\\n\r\n')])
        await speak(server, [get(b"/v1/models/" + b"x" * 5000)])
        await speak(server, [chunked(b"zz\r\n")])
    routes = [json.loads(line)["route"] for line in lines]
    assert "/v1/completions" in routes
    for line in lines:
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert len(line) < 1024
        assert line.isascii()
        assert secret.encode() not in line
        assert not any(word in line for word in SECRETS)


async def test_hostile_values_create_no_new_series():
    async with running_server() as server:

        async def series():
            async with server.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
                return {line.rsplit(" ", 1)[0] for line in (await response.text()).splitlines() if not line.startswith("#")}

        await probe(server)
        await server.post("/v1/completions", {"prompt": "hi", "model": "other"})
        before = await series()
        for number in range(200):
            body = {"prompt": "hi", "max_tokens": 1, "user": f"user {number}", "model": "sim" if number % 2 else f"model {number}"}
            await server.post("/v1/completions", body, headers={"X-Request-Id": f"id-{number}"})
            await server.session.get(f"/path/{number}", headers={"User-Agent": f"agent {number}"})
        assert await series() == before


async def test_a_log_that_cannot_be_written_stops_no_request(tmp_path, capsys):
    log = open_log(Path("/dev/full"))
    async with running_server(app={"log": log}) as server:
        assert await probe(server) == await probe(server)
    assert log.close()
    assert capsys.readouterr().err.count("requests cannot be written: No space left on device") == 1
    path = tmp_path / "requests.jsonl"
    log = open_log(path)
    async with running_server(app={"log": log}) as server:
        await probe(server)
    assert log.close()
    assert json.loads(path.read_text())["status"] == 200
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="--request-log"):
        open_log(tmp_path / "none" / "x")
