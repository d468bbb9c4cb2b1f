"""Invalid fields and bodies over HTTP and raw sockets are refused with the field's name.

The next request is served normally.
"""

import asyncio
import io
import json
import socket

import msgspec
import pytest
from attacks.canary import check_error, probe
from attacks.requests import BODIES, CHAT, COMPLETIONS, GENERATE, rows
from http_support import running_server
from quiescence import check_quiescent
from socket_support import running_socket

from frontends.rawsocket import frames
from frontends.rawsocket.frames import Open

pytestmark = pytest.mark.anyio

ROWS = list(rows())
# A request that is too large for its route is refused without a field's name.
STATUSES = {"P18": {404, 400}, "P19": {400, 413}}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def nobody_calls():
    """Return a port of this machine that must get no connection."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        yield trap.getsockname()[1]
        with pytest.raises(BlockingIOError):
            trap.accept()


def encoded(body):
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()


async def send(server, path, body):
    """Return the answer's status and body."""
    async with server.session.post(path, data=io.BytesIO(body), headers={"Content-Type": "application/json"}) as response:
        return response.status, await response.read()


async def test_over_http(nobody_calls):
    async with running_server() as server:
        song = await probe(server)
        for row, path, body, field in ROWS:
            data = encoded(body).replace(b"{port}", str(nobody_calls).encode())
            status, answer = await send(server, path, data)
            error = check_error(status, answer, STATUSES.get(row, {400}), (row, data[:300]))
            assert error["param"] == field or row == "P20", (row, data[:300], error)
            assert await probe(server) == song
        check_quiescent(server.manager)


async def test_bodies_over_http():
    async with running_server() as server:
        song = await probe(server)
        for path in (COMPLETIONS, CHAT, GENERATE, "/tokenize", "/detokenize"):
            for body in BODIES.values():
                status, answer = await send(server, path, body)
                check_error(status, answer, {400}, (path, body[:300]))
            assert await probe(server) == song
        check_quiescent(server.manager)


async def test_over_frames():
    """Test the rows whose field exists on raw sockets, with values as MessagePack."""
    tried = 0
    async with running_socket() as served, served.raw() as raw:
        for number, (_, path, body, field) in enumerate(ROWS, start=1):
            if path != GENERATE:
                continue
            try:
                fields = json.loads(body) if isinstance(body, bytes) else body
                packed = msgspec.msgpack.encode(fields)
            except (OverflowError, ValueError):
                # MessagePack has no integer of this size.
                continue
            raw.send(Open(number, 1000, msgspec.Raw(packed)))
            error = await raw.read()
            assert isinstance(error, frames.Error), (field, error)
            assert (error.id, error.kind) in ((number, "InvalidRequest"), (number, "PromptTooLong"))
            assert error.details.get("param") == field, (field, error)
            tried += 1
            raw.send(Open(0x10000 + number, 1000, msgspec.Raw(msgspec.msgpack.encode({"prompt": "canary", "max_tokens": 2}))))
            await raw.read_until(frames.End)
        assert tried > 100
        await served.quiet()


async def test_neighbours_are_not_touched():
    """A seeded answer stays the same beside many requests that are refused."""
    async with running_server(time_scale=0.001) as server:
        song = await probe(server)

        async def crowd(part):
            for _, path, body, _ in ROWS[part::16]:
                await send(server, path, encoded(body))

        async with asyncio.TaskGroup() as tasks:
            crowds = [tasks.create_task(crowd(part)) for part in range(16)]
            while not all(task.done() for task in crowds):
                assert await probe(server) == song
        check_quiescent(server.manager)
