"""Limits of connections, time limits, TLS and vanished clients."""

import asyncio
import os
import resource
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import anyio
import pytest
import trustme
from aiohttp import web
from http_support import running_server
from hypothesis import given
from hypothesis import strategies as st
from program_support import MODULE, program

from frontends.http import server
from frontends.net import deadlines
from frontends.net.connection_limits import RESERVED, ConnectionLimiter, spare_descriptors
from frontends.net.listeners import VANISHED, bind, bind_unix, is_stranger
from frontends.net.tls import TLS, followed
from llmserve import ConfigurationError

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[1] / "data"
ASK = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def connect(running):
    return await anyio.connect_tcp("127.0.0.1", int(running.url.rsplit(":", 1)[1]))


async def rest(stream):
    found = b""
    with anyio.fail_after(10):
        try:
            while True:
                found += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return found


# Connection limits


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["10.0.0.1", "10.0.0.2", "fe80::1%eth0", "127.0.0.1", "::1", ""]))))
def test_the_limiter_admits_no_more_connections_than_its_limits(moves):
    limiter, inside = ConnectionLimiter(6, 2), []
    for comes, peer in moves:
        if comes:
            mine = inside.count(peer)
            here = peer in ("127.0.0.1", "::1", "")
            assert limiter.enter(peer) == (len(inside) < 6 and (here or mine < 2))
            if len(inside) < 6 and (here or mine < 2):
                inside.append(peer)
        elif peer in inside:
            inside.remove(peer)
            limiter.leave(peer)
        assert limiter.inside == len(inside)


def test_the_connection_limit_never_exceeds_the_open_files():
    limiter = ConnectionLimiter(10**9)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert spare_descriptors() == soft - RESERVED
    assert all(limiter.enter("127.0.0.1") for _ in range(soft - RESERVED))
    assert not limiter.enter("127.0.0.1")


async def test_a_connection_above_the_limit_is_answered_and_the_next_one_is_accepted():
    limiter = ConnectionLimiter(2)
    async with running_server(limiter=limiter) as running:
        first, second = await connect(running), await connect(running)
        for stream in (first, second):
            await stream.send(ASK)
            assert b"200 OK" in await stream.receive()
        async with await connect(running) as third:
            assert b"503 Service Unavailable" in await rest(third)
        assert limiter.rejected == 1
        await first.aclose()
        with anyio.fail_after(10):
            while limiter.inside > 1:
                await anyio.sleep(0.01)
        async with await connect(running) as fourth:
            await fourth.send(ASK)
            assert b"200 OK" in await fourth.receive()
        await second.aclose()
    assert limiter.inside == 0


async def test_with_few_files_excess_connections_are_rejected_and_nothing_is_logged(tmp_path):
    """Row R12: with 256 descriptors and 400 clients the server keeps serving."""
    module = ("/bin/sh", "-c", 'ulimit -n 256; exec "$0" "$@"', *MODULE, "--port", "0")
    async with program(tmp_path, module=module) as (_, url, lines):
        port, before = int(url.rsplit(":", 1)[1]), len(lines)
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port)) for _ in range(400)]
            assert b"503" in await rest(streams[-1])
            await streams[0].send(ASK)
            assert b"200 OK" in await streams[0].receive()
    assert len([line for line in lines[before:] if "stopped" not in line and "draining" not in line]) == 0


# Time limits


@pytest.mark.parametrize("beginning", [b"", b"GET /health/live HT", ASK[:-2]])
async def test_a_client_without_a_request_is_disconnected(monkeypatch, beginning):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    async with running_server() as running, await connect(running) as stream:
        if beginning:
            await stream.send(beginning)
        assert b"408 Request Timeout" in await rest(stream)


async def test_between_requests_there_is_time_but_not_within_one(monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    async with running_server() as running, await connect(running) as stream:
        await stream.send(ASK)
        assert b"200 OK" in await stream.receive()
        await anyio.sleep(0.5)
        await stream.send(ASK)
        assert b"200 OK" in await stream.receive()
        await stream.send(b"GET ")
        assert b"408" in await rest(stream)


async def test_a_request_that_is_being_answered_has_all_the_time_it_needs(monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)
    async with running_server(time_scale=1.0, step_seconds=0.1) as running:
        status, _, _ = await running.post("/v1/completions", {"prompt": "hi", "max_tokens": 6, "ignore_eos": True})
        assert status == 200


async def test_one_connection_s_body_does_not_fill_a_turn_of_the_event_loop(monkeypatch):
    sizes = []

    class Observed(server.GuardedHandler):
        """Notes the sizes of reads, which no figure of the server shows."""

        def data_received(self, data):
            sizes.append(len(data))
            super().data_received(data)

    monkeypatch.setattr(server, "GuardedHandler", Observed)
    async with running_server() as running:
        status, _, _ = await running.post("/v1/completions", b'{"prompt": "' + b"x" * 2**21 + b'"}')
        assert status == 400
    assert sum(sizes) > 2**20
    assert max(sizes) <= server.READ_BYTES


async def test_a_missing_body_times_out(monkeypatch):
    monkeypatch.setattr(deadlines, "BODY_SECONDS", 0.2)
    async with running_server() as running, await connect(running) as stream:
        await stream.send(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nContent-Type: application/json\r\n\r\n{")
        assert b"body_timeout" in await stream.receive()


async def test_a_client_that_reads_nothing_of_a_whole_answer_is_disconnected(monkeypatch):
    monkeypatch.setattr(deadlines, "WRITE_SECONDS", 0.3)
    limiter = ConnectionLimiter()
    async with running_server(limiter=limiter) as running:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        with connection:
            with pytest.raises(BlockingIOError):
                connection.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
            await anyio.wait_writable(connection)
            with anyio.fail_after(20):
                sent = 0
                while not sent or limiter.inside:
                    # One answer more than the kernel holds for the client.
                    try:
                        sent += connection.send(ASK * 100)
                    except (BlockingIOError, ConnectionError):
                        sent += 1
                    await anyio.sleep(0.001)


# TLS and vanished clients


async def test_tls_and_certificates_of_clients(tmp_path):
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, ca = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)

    async def ask(running, issuer):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if issuer is not None:
            issuer.issue_cert("client").configure_cert(context)
        async with running.session.get("/health/live", ssl=context) as response:
            return response.status

    async with running_server(tls=TLS.of(chain, key)) as running:
        assert await ask(running, None) == 200
    async with running_server(tls=TLS.of(chain, key, ca)) as running:
        assert await ask(running, authority) == 200
        for stranger in (None, other):
            with pytest.raises(aiohttp.ClientError):
                await ask(running, stranger)


async def test_a_certificate_that_is_renewed_holds_for_the_next_connection(tmp_path, capfd):
    old, new = trustme.CA(), trustme.CA()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def issue(authority):
        return authority.issue_cert("127.0.0.1")

    def write(certificate):
        (chain_pem,) = certificate.cert_chain_pems
        chain_pem.write_to_path(chain)
        return certificate.private_key_pem.write_to_path

    async def ask(running, *authorities):
        context = ssl.create_default_context()
        for one in authorities:
            one.configure_trust(context)
        async with aiohttp.ClientSession(running.url) as session, session.get("/health/live", ssl=context) as response:
            return response.status

    async def told(words):
        found = ""
        with anyio.fail_after(10):
            while words not in found:
                await anyio.sleep(0.05)
                found += capfd.readouterr().err

    write(issue(old))(key)
    tls = TLS.of(chain, key)
    async with running_server(tls=tls) as running, followed(tls):
        assert await ask(running, old) == 200
        # The new certificate does not match the old key yet, so the old pair stays in force.
        write_key = write(issue(new))
        await told("tls       not changed: TLS with")
        assert await ask(running, old) == 200
        write_key(key)
        await told("reloaded")
        assert await ask(running, new) == 200
        with pytest.raises(aiohttp.ClientError):
            await ask(running, old)


async def test_the_end_does_not_wait_for_a_handshake():
    """A client that connects without a TLS handshake leaves nothing behind when the server ends."""
    tls, limiter = TLS.of(DATA / "localhost.pem", DATA / "localhost.key"), ConnectionLimiter()
    before = asyncio.all_tasks()
    async with running_server(tls=tls, limiter=limiter) as running:
        silent = await connect(running)
        with anyio.fail_after(5):
            while not limiter.inside:
                await anyio.sleep(0.01)
    assert limiter.inside == 0
    assert asyncio.all_tasks() <= before
    await silent.aclose()


def test_incomplete_tls_options_are_an_error():
    with pytest.raises(ConfigurationError, match="--tls-key"):
        TLS.of(Path("chain.pem"), None)
    with pytest.raises(ConfigurationError, match="--tls-cert"):
        TLS.of(None, None, Path("ca.pem"))


async def test_only_its_owner_can_use_a_unix_socket(tmp_path):
    path = tmp_path / "socket"
    async with program(tmp_path, "--unix", str(path)) as (_, url, _):
        assert url == f"unix://{path}"
        assert os.stat(path).st_mode & 0o777 == 0o600
        async with await anyio.connect_unix(path) as stream:
            await stream.send(ASK)
            assert b"200 OK" in await stream.receive()


def test_a_socket_that_a_killed_server_left_is_replaced_and_no_other(tmp_path):
    path = tmp_path / "socket"
    bind_unix(path).close()
    with bind_unix(path), pytest.raises(OSError, match="in use"):
        bind_unix(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="in use"):
        bind_unix(link)
    assert link.is_symlink()
    with pytest.raises(OSError, match="too long"):
        bind_unix(tmp_path / ("x" * 108))


def test_a_stranger_is_another_user(monkeypatch):
    one, other = socket.socketpair()
    with one, other:
        assert not is_stranger(one)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert is_stranger(one) == (os.getuid() != 0)


async def test_the_kernel_probes_silent_clients():
    """Row R7: a client whose network is gone sends no end; `VANISHED` has the kernel's probes."""
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert client.getpeername() == listener.getsockname()
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert {option: accepted.getsockopt(socket.IPPROTO_TCP, option) for option in VANISHED} == VANISHED


@pytest.mark.parametrize("leaves", [True, False])
async def test_only_a_connection_error_of_a_client_that_is_still_there_is_a_failure(leaves, caplog):
    """A regression: with uvloop, a token in the moment in which the client left was logged with a traceback."""

    @web.middleware
    async def fail(request, handler):
        if leaves:
            request.transport.abort()
        raise ConnectionResetError("the client has gone")

    async with running_server(app={"clients": fail}) as running:
        try:
            async with running.session.get("/health") as response:
                assert response.status == 500
        except aiohttp.ClientError:
            assert leaves
    assert ("a handler failed" in caplog.text) is not leaves
