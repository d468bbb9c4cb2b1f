"""The raw-socket client with errors, and with requests that the protocol does not support."""

from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from engines import ScriptedEngine
from socket_support import running_socket

from frontends.rawsocket.client import SocketClient
from frontends.rawsocket.client_connection import NOT_CARRIED
from frontends.rawsocket.errors import to_exception, to_frame
from frontends.rawsocket.frames import Error
from llmserve import (
    CancellationToken,
    DeadlineExceeded,
    Delta,
    EngineDead,
    EngineError,
    InvalidRequest,
    ManagerConfig,
    RequestCancelled,
    RestartConfig,
    Tools,
    Unavailable,
)


@asynccontextmanager
async def after_two_tokens(token=None):
    """Yield a server, its client, and an open stream with its sink, after two tokens."""
    engine = ScriptedEngine()
    config = ManagerConfig(restart=RestartConfig(most=0))
    async with (
        running_socket(engine=engine, config=config) as served,
        SocketClient(served.addresses[0]) as client,
        client.stream("hi", token=token, max_tokens=50) as stream,
    ):
        (sink,) = engine.sinks.values()
        sink.put(Delta("a", (1,)))
        sink.put(Delta("b", (2,)))
        with anyio.fail_after(60):
            while stream.usage.completion_tokens < 2:
                await anyio.sleep(0.001)
        yield served, client, sink, stream


async def ended(stream, kind):
    with pytest.raises(kind) as caught:
        await stream.collect()
    return caught.value


def check(partial):
    assert (partial.text, partial.token_ids, partial.finish_reason) == ("ab", (1, 2), "abort")
    assert (partial.usage.prompt_tokens, partial.usage.completion_tokens) == (2, 2)


async def test_a_token_leaves_the_output_so_far():
    token = CancellationToken()
    async with after_two_tokens(token) as (served, _, _, stream):
        token.cancel("enough")
        check((await ended(stream, RequestCancelled)).partial)
        await served.quiet()


async def test_a_lost_connection_leaves_the_output_so_far():
    async with after_two_tokens() as (_, client, _, stream):
        client.wire.transport.abort()
        check((await ended(stream, EngineDead)).partial)


@pytest.mark.parametrize("error", [DeadlineExceeded(2.0), EngineError("bad luck")])
async def test_an_error_of_the_server_s_leaves_the_output_so_far(error):
    async with after_two_tokens() as (_, _, sink, stream):
        sink.fail(error)
        found = await ended(stream, type(error))
        assert str(found) == str(error)
        check(found.partial)


async def test_a_server_that_stops_leaves_the_output_so_far():
    async with after_two_tokens() as (served, _, _, stream):
        served.manager.cancel_all("stopping")
        check((await ended(stream, Unavailable)).partial)


async def test_the_death_of_the_server_s_engine_leaves_the_output_so_far():
    async with after_two_tokens() as (served, _, _, stream):
        served.manager.engine.kill()
        check((await ended(stream, EngineDead)).partial)


async def test_output_that_came_just_before_the_error_is_in_it():
    """The server sends both in one write."""
    async with after_two_tokens() as (_, _, sink, stream):
        sink.put(Delta("c", (3,)))
        sink.fail(EngineError("bad luck"))
        assert (await ended(stream, EngineError)).partial.text == "abc"


async def test_output_that_was_read_before_is_not_in_it():
    async with after_two_tokens() as (_, _, sink, stream):
        await anext(stream)
        sink.put(Delta("c", (3,)))
        sink.fail(EngineError("bad luck"))
        assert (await ended(stream, EngineError)).partial.text == "c"


def test_an_engine_s_death_has_its_attributes_after_the_wire():
    found = to_exception(to_frame(1, EngineDead("it died", for_good=True, stalled=True)))
    assert type(found) is EngineDead
    # The protocol does not carry these attributes, but none is missing at the client.
    assert (found.for_good, found.stalled) == (False, False)
    bare: Any = to_exception(Error(1, "EngineDead", "it died", {}))
    assert bare.for_good is False


@pytest.mark.parametrize("name", NOT_CARRIED)
async def test_a_field_that_the_wire_does_not_have_is_refused_by_name(name):
    fields: dict[str, Any] = {
        "tools": Tools(functions=({"name": "f"},)),
        "template_kwargs": {"enable_thinking": False},
        "return_prompt_ids": True,
    }
    async with running_socket() as served, SocketClient(served.addresses[0]) as client:
        with pytest.raises(InvalidRequest, match=f"the raw-socket protocol does not support {name}") as caught:
            await client.generate([{"role": "user", "content": "hi"}], max_tokens=1, **{name: fields[name]})
        assert caught.value.param == name
        # The connection continues.
        assert (await client.generate("hi", max_tokens=1)).usage.completion_tokens == 1
