"""Hostile requests at a cluster's ingress, before its replicas see them; without Ray."""

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest
from aiohttp import web

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.cluster.ingress_server import IngressServer, open_listeners
from frontends.cluster.intake import Intake
from frontends.cluster.relay import RelayedRequest
from frontends.cluster.replica_client import ReplicaClient
from frontends.cluster.replica_directory import ReplicaAddress
from frontends.cluster.settings import read_settings
from frontends.http.request_checks import MAX_BODY
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from frontends.openai.errors import HTTPFailure

pytestmark = pytest.mark.anyio

PIECE = b"x" * 2**18


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


class Request:
    """The used part of a Starlette request; `taken` counts the bytes that were read."""

    def __init__(self, path=b"/v1/completions", headers=(), pieces=(), query=b"", pause=0.0):
        self.method = "POST"
        self.scope = {"raw_path": path, "query_string": query, "path": path.decode("latin-1")}
        self.headers = SimpleNamespace(raw=list(headers))
        self.taken = 0
        self._pieces, self._pause = pieces, pause

    async def stream(self):
        for piece in self._pieces:
            await asyncio.sleep(self._pause)
            self.taken += len(piece)
            yield piece


async def read(intake, request):
    return await intake.read(request)


async def refused(intake, request):
    with pytest.raises(HTTPFailure) as caught:
        await read(intake, request)
    return caught.value.status, caught.value.code


async def test_a_huge_body_is_refused_before_it_is_here():
    """A regression: 300 MiB were buffered before any check."""
    announced = Request(headers=[(b"content-length", b"%d" % (300 * 2**20))], pieces=[PIECE] * 1200)
    assert await refused(Intake(), announced) == (413, "body_too_large")
    assert announced.taken == 0
    tracemalloc.start()
    chunked = Request(pieces=[PIECE] * 1200)
    assert await refused(Intake(), chunked) == (413, "body_too_large")
    assert chunked.taken == MAX_BODY + len(PIECE)
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_BODY
    tracemalloc.stop()
    asked = await read(Intake(), Request(headers=[(b"X-One", b"1"), (b"Expect", b"100-continue")], pieces=[PIECE, b"y"], query=b"a=%2F"))
    assert asked == RelayedRequest("POST", "/v1/completions?a=%2F", (("X-One", "1"),), PIECE + b"y")


@pytest.mark.parametrize("length", [b"x", b"-1", b"1" * 5000, "\u00b2".encode("latin-1")])
async def test_an_invalid_length_is_refused(length):
    assert (await refused(Intake(), Request(headers=[(b"content-length", length)])))[0] == 413


async def test_a_slow_body_is_given_up_and_many_are_bounded_together():
    assert await refused(Intake(), Request(pieces=[b"x"] * 60, pause=1.0)) == (408, "body_timeout")
    intake = Intake(max_incomplete=MAX_BODY)
    waiting = [asyncio.create_task(read(intake, Request(pieces=[PIECE * 7, PIECE], pause=1.0))) for _ in range(3)]
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(one, HTTPFailure) and (one.status, one.code) == (503, "receiving_too_much") for one in found) == 1
    assert sum(isinstance(one, RelayedRequest) for one in found) == 2


async def test_keys_are_checked_before_the_body_is_read():
    access = Access(Keys.single("secret"))
    for shown in ([], [b"Bearer wrong"], [b"secret"], [b"Bearer secret"] * 2):
        request = Request(headers=[(b"authorization", value) for value in shown], pieces=[PIECE])
        assert await refused(Intake(access), request) == (401, "invalid_api_key")
        assert request.taken == 0
    for right in ((b"Authorization", b"Bearer secret"), (b"x-api-key", b"secret")):
        assert (await read(Intake(access), Request(headers=[right], pieces=[PIECE]))).body == PIECE
    for path in (b"/health", b"/health/live", b"/health/ready"):
        for query in (b"", b"x=1"):
            assert (await read(Intake(access), Request(path, query=query))).path.partition("?")[0] == path.decode()
    for path in (b"//health/live", b"/health/live/", b"/health/liv%65", b"/x/../health/live"):
        assert (await refused(Intake(access), Request(path)))[0] == 401


@pytest.mark.parametrize(
    "path", [b"", b"*", b"http://evil/metrics", b"/a b", b"/a\r\nX: 1", "/\u00e9".encode(), b"/\xff", b"/\0", b"/\x7f"]
)
async def test_an_invalid_path_is_a_client_error(path):
    """A regression: the error said that three replicas had ended."""
    request = Request(path)
    request.scope["path"] = ""
    assert await refused(Intake(), request) == (400, "invalid_target")


TARGETS = (
    *("/", "//evil/metrics", "//evil:99999/metrics", "//[", "//[::1/x", "//@/metrics", "/\\evil/metrics", "///", "/:80", "/metrics;x"),
    *("/a/../metrics", "/./metrics", "/%2e%2e/metrics", "/%", "/%zz", "/metrics%00", "/a#/metrics", "/?", "/?a#b", "/a?b?c", '/{}|^`<>"'),
)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_path_reaches_the_server_as_it_was_sent(anyio_backend):
    """A regression: the route /metrics answered `//evil/metrics`."""
    seen = []

    async def note(request):
        seen.append((request.raw_path, request.headers["Host"]))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", note)
    async with running(app) as acceptor, listen(acceptor, listener := bind("127.0.0.1", 0)):
        client, place = ReplicaClient(), ReplicaAddress("a", "127.0.0.1", listener.getsockname()[1], "the secret")

        async def ask(asked):
            return await client.ask(place, asked)

        settings = read_settings(["--port", "0"])
        [port] = await open_listeners(settings.cluster, 0.0)
        async with IngressServer(settings, Intake(), ask).serving([port]):
            for target in TARGETS:
                # Through the whole ingress, from a client that sends any target.
                status = await status_of(port.getsockname(), b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target.encode())
                if status == 200:
                    # An empty query has no effect.
                    assert seen.pop() == (target.removesuffix("?"), "localhost")
                else:
                    # llmserve's server answers so, as to a direct client.
                    assert (status, seen) == (400, [])
            assert await status_of(port.getsockname(), b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 314572800\r\n\r\n") == 413
            for head, expected in BAD_HEADS.items():
                assert await status_of(port.getsockname(), b"POST / HTTP/1.1\r\n%b\r\n\r\n" % head) == expected, head
            assert await status_of(port.getsockname(), b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") == 400
            assert not seen
        await client.close()


# What a server without Ray refuses, with its status.
BAD_HEADS = {
    b"Host: localhost\r\nIdempotency-Key: one\r\nidempotency-key: two": 400,
    b"Host: localhost\r\nContent-Length: 2\r\nExpect: banana": 417,
    b"Host: evil.example": 403,
    b"Host: x y": 400,
    # The chunk's length is invalid, in a later segment.
    b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n": 400,
}


async def status_of(address, request):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])
