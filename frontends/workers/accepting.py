"""The owner accepts connections and hands each to the worker with the fewest; a listener of each worker's own would leave it to chance."""

import asyncio
import socket
from collections.abc import Sequence

import anyio

from frontends.net.acceptor import RETRY_SECONDS
from frontends.workers.handle import Member

FULL_SECONDS = 0.005


async def accept(listener: socket.socket, members: Sequence[Member]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except OSError:
            # Gone in the line, or no descriptor is left for a while.
            await anyio.sleep(RETRY_SECONDS)
            continue
        with connection:
            while not hand(connection, members):  # noqa: ASYNC110 - a socket pair that is full has no event in asyncio
                await anyio.sleep(FULL_SECONDS)


def hand(connection: socket.socket, members: Sequence[Member]) -> bool:
    """False if no worker can take it now. A worker that has drained gets none."""
    members = [member for member in members if not member.parting]
    # One that takes another's place starts beside those that serve; in the beginning all of them do, and say so.
    able = [member for member in members if member.up] or members
    # A worker that does not answer gets none, unless no worker does.
    able = [member for member in able if not member.silent] or able
    return any(member.hand(connection) for member in sorted(able, key=lambda member: member.connections))
