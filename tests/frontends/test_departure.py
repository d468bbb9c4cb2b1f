"""Clients with kept connections while a server stops: each sent request is answered."""

import asyncio
import json
import signal
from contextlib import suppress

import anyio
import attrs
import pytest
from http_support import running_server
from program_support import fetch, program

from frontends.http.departure import Departure
from llmserve import ManagerConfig

pytestmark = pytest.mark.anyio
CLIENTS = 20
SLOW = ("--engine-arg", "step_seconds=0.005")
BODY = json.dumps({"prompt": "hi", "max_tokens": 4, "ignore_eos": True}).encode()
ASK = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
def anyio_backend():
    return "asyncio"


@attrs.define
class Counts:
    """The counts of a client.

    `lost` counts requests whose connection closed before an answer. `closing` counts answers that
    announced the end of their connection.
    """

    lost: int = 0
    answered: int = 0
    refused: int = 0
    closing: int = 0


async def keep_asking(port, counts):
    """Send requests one after another until no server listens.

    A new connection is opened when an answer announces the end of the previous one.
    """
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        closing = False
        while not closing:
            status = 0
            with suppress(OSError, asyncio.IncompleteReadError):
                writer.write(ASK)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                status, closing = int(head.split()[1]), b"connection: close" in head.lower()
            if not status:
                counts.lost += 1
                break
            counts.answered += status == 200
            counts.refused += status == 503
            counts.closing += closing
        writer.close()


async def answers(counts, more):
    wanted = counts.answered + more
    with anyio.fail_after(20):
        while counts.answered < wanted:
            await anyio.sleep(0.002)


@WORKERS
@pytest.mark.parametrize("delay", ["0", "0.5"])
async def test_clients_that_keep_their_connections_lose_no_request(tmp_path, workers, delay):
    """A regression: each of 20 clients lost one request to a closed connection."""
    async with program(tmp_path, "--workers", workers, "--drain-delay", delay, *SLOW) as (process, url, _):
        counts = Counts()
        async with anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(keep_asking, int(url.rsplit(":", 1)[1]), counts)
            await answers(counts, CLIENTS)
            process.send_signal(signal.SIGTERM)
            with anyio.fail_after(20):
                assert await process.wait() == 0
    assert counts.lost == 0, counts
    assert counts.closing >= CLIENTS, counts


@WORKERS
async def test_during_the_drain_delay_requests_are_served_and_readiness_ends(tmp_path, workers):
    """A second signal ends the delay, which would be a minute."""
    async with program(tmp_path, "--workers", workers, "--drain-delay", "60") as (process, url, lines):
        assert (await fetch(f"{url}/health/ready"))[0] == 200
        process.send_signal(signal.SIGTERM)
        assert b"leaving   for 60 s" in await process.stderr.readline()
        with anyio.fail_after(10):
            while (await fetch(f"{url}/health/ready"))[0] == 200:
                await anyio.sleep(0.01)
        for _ in range(4):
            assert (await fetch(f"{url}/health"))[0] == 503
            assert (await fetch(f"{url}/health/live"))[0] == 200
            assert (await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 2}))[0] == 200
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert "stopped" in lines[-1]


async def test_every_answer_after_the_signal_closes_its_connection():
    departure = Departure()
    async with running_server(config=ManagerConfig(drain_timeout=1), app={"departure": departure}) as server:
        asks = [
            ("GET", "/v1/models", None), ("GET", "/health/ready", None), ("GET", "/nowhere", None),
            ("POST", "/v1/completions", {"prompt": 1.5}),
            ("POST", "/v1/completions", {"prompt": "hi", "max_tokens": 2}),
            ("POST", "/generate", {"prompt": "hi", "max_tokens": 2, "stream": True}),
        ]  # fmt: skip
        for begun in (False, True):
            if begun:
                departure.begin()
            for method, path, body in asks:
                async with server.session.request(method, path, json=body) as response:
                    await response.read()
                    assert (response.headers.get("Connection") == "close") is begun, (path, begun)
