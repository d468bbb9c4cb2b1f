"""Stored responses with several workers: a client's next request may reach another worker.

So the supervisor has the store.
"""

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from frontends.responses.memory import ResponseMemory
from frontends.responses.stored import Name, Operation, Stop, StoredResponse
from frontends.workers.messages import StopResponse, StoreReply, StoreRequest

LOST = {"code": "server_error", "message": "the process that made this response has ended"}


class ResponsesClient:
    """The worker's side, which satisfies `frontends.responses.stored.ResponseStore`."""

    def __init__(self, send: Callable[[Any], None], *, keeps: bool) -> None:
        self.keeps = keeps
        self._send = send
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[StoredResponse | None]] = {}
        # What stops the responses that run here.
        self._stops: dict[Name, Stop] = {}

    async def ask(self, operation: Operation, stop: Stop | None = None) -> StoredResponse | None:
        asked, name, response = next(self._numbers), operation.name, operation.response
        replied: asyncio.Future[StoredResponse | None] = asyncio.get_running_loop().create_future()
        self._asked[asked] = replied
        if stop is not None:
            self._stops[name] = stop
        elif response is not None and not response.runs:
            self._stops.pop(name, None)
        self._send(StoreRequest(asked, operation))
        found = await replied
        if operation.kind == "add" and found is None:
            self._stops.pop(name, None)
        return found

    def receive(self, message: StoreReply | StopResponse) -> None:
        match message:
            case StoreReply():
                replied = self._asked.pop(message.number)
                if not replied.done():
                    replied.set_result(message.response)
            case StopResponse():
                stop = self._stops.pop(message.name, None)
                if stop is not None:
                    stop()


class ResponsesServer:
    """The supervisor's side for one worker. The responses that run in the worker fail with it."""

    def __init__(self, memory: ResponseMemory, send: Callable[[Any], None]) -> None:
        self._memory = memory
        self._send = send
        self._running: set[Name] = set()

    def receive(self, message: StoreRequest) -> None:
        operation = message.operation
        name, response = operation.name, operation.response
        found = self._memory.do(operation, partial(self._stop, name))
        if response is not None and not response.runs:
            self._running.discard(name)
        elif operation.kind == "add" and found is not None:
            self._running.add(name)
        if found is not None and operation.kind != "get":
            found = found.bare(found.body)
        self._send(StoreReply(message.number, found))

    def _stop(self, name: Name) -> None:
        self._running.discard(name)
        self._send(StopResponse(name))

    def close(self) -> None:
        """End the worker's responses, after its end."""
        while self._running:
            name = self._running.pop()
            found = self._memory.do(Operation("get", name))
            if found is not None:
                self._memory.do(Operation("replace", name, found.ended("failed", LOST)))
