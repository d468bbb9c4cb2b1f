import asyncio
import socket

import pytest

from frontends.rawsocket.frames import encode
from frontends.workers import messages
from frontends.workers.channel import Channel
from frontends.workers.messages import Check, Reread

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_a_message_that_came_first_waits_until_its_receiver_listens():
    """A regression: on a busy machine the supervisor's first check killed a starting worker."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.send(encode(Check(), Reread()))
        received, done = [], asyncio.Event()

        def receive(message):
            received.append(message)
            done.set()

        channel = await Channel.open(ours, messages.FromSupervisor, receive, done.set)
        loop = asyncio.get_running_loop()
        # By then the loop has polled the socket and would have read the message.
        for _ in range(3):
            polled = loop.create_future()
            loop.call_soon(polled.set_result, None)
            await polled
        assert received == []
        channel.listen()
        await done.wait()
        assert received == [Check(), Reread()]
        channel.close()
