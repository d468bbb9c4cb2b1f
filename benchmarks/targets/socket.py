"""A raw-socket server, through our client; it is used like the manager itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.targets.base import TargetError
from benchmarks.targets.inprocess import InProcess
from frontends.rawsocket.client import SocketClient
from frontends.rawsocket.frames import FrameError
from llmserve import ConfigurationError


@asynccontextmanager
async def open_socket(address: str) -> AsyncIterator[InProcess]:
    """Open one connection for all requests. Raises TargetError."""
    async with open_client(address) as client:
        yield InProcess(client)


@asynccontextmanager
async def open_client(address: str) -> AsyncIterator[SocketClient]:
    """Open a connected client. Raises TargetError."""
    try:
        client = SocketClient(address)
        await client.__aenter__()
    except (OSError, FrameError, ConfigurationError, TimeoutError) as error:
        raise TargetError(f"{address} cannot be reached: {str(error) or type(error).__name__}") from error
    try:
        yield client
    finally:
        await client.__aexit__(None, None, None)
