"""The owner accepts connections and hands each to the worker with the fewest; a listener of each worker's own would leave it to chance."""

import asyncio
import socket
from collections.abc import Sequence

import anyio

from frontends.net.acceptor import RETRY_SECONDS
from frontends.workers.handle import WorkerHandle

FULL_SECONDS = 0.005


async def accept(listener: socket.socket, handles: Sequence[WorkerHandle]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except OSError:
            # Gone in the line, or no descriptor is left for a while.
            await anyio.sleep(RETRY_SECONDS)
            continue
        with connection:
            while not hand(connection, handles):  # noqa: ASYNC110 - a socket pair that is full has no event in asyncio
                await anyio.sleep(FULL_SECONDS)


def hand(connection: socket.socket, handles: Sequence[WorkerHandle]) -> bool:
    """False if no worker can take it now. A worker that has drained gets none."""
    handles = [handle for handle in handles if not handle.parting]
    # One that takes another's place starts beside those that serve; in the beginning all of them do, and say so.
    able = [handle for handle in handles if handle.up] or handles
    # A worker that does not answer gets none, unless no worker does.
    able = [handle for handle in able if not handle.silent] or able
    return any(handle.hand(connection) for handle in sorted(able, key=lambda handle: handle.connections))
