"""The supervisor accepts connections and hands each one to the worker with the fewest.

With one listener per worker, chance would distribute the connections.
"""

import socket
from collections.abc import Sequence

import anyio

from frontends.net.acceptor import accept_one
from frontends.workers.handle import WorkerHandle

FULL_SECONDS = 0.005


async def accept(listener: socket.socket, handles: Sequence[WorkerHandle]) -> None:
    while True:
        with await accept_one(listener) as connection:
            while not hand(connection, handles):  # noqa: ASYNC110 - asyncio has no event for a full socket pair
                await anyio.sleep(FULL_SECONDS)


def hand(connection: socket.socket, handles: Sequence[WorkerHandle]) -> bool:
    """Hand a connection to a worker that has not drained; return False if no worker can take it."""
    handles = [handle for handle in handles if not handle.parting]
    # Prefer workers that are up to those that are starting. At first all workers are starting, and
    # they answer that they are.
    able = [handle for handle in handles if handle.up] or handles
    # Avoid silent workers, unless all workers are silent.
    able = [handle for handle in able if not handle.silent] or able
    return any(handle.hand(connection) for handle in sorted(able, key=lambda handle: handle.connections))
