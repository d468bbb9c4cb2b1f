"""The workers' processes: starts, replaces and ends them, and hands them the accepted connections."""

import asyncio
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.abc

from frontends.http.idempotency_store import ResponseCache
from frontends.http.settings import HTTPServerSettings
from frontends.logs.operator_log import say
from frontends.net.acceptor import accept_waiting
from frontends.responses.memory import ResponseMemory
from frontends.workers import messages
from frontends.workers.accepting import accept, hand
from frontends.workers.handle import WorkerHandle
from frontends.workers.idempotency import IdempotencyServer
from frontends.workers.responses import ResponsesServer
from frontends.workers.state import SupervisorState
from frontends.workers.watchdog import watch

# Maximum number of replaced workers. The engine core has a place for each of them from its start.
SPARES = 32


class WorkerPool:
    """All workers.

    Args:
        settings: the settings of the workers.
        count: the number of workers at one time.
        state: gets a failure after too many deaths.
        receive: called with each message of a worker.
        lost: called with a worker that has ended, and the requests that it has left in the engines
            and that must be aborted: the engine's number and the request's id.

    Attributes:
        handles: the workers that have not ended.
    """

    def __init__(
        self,
        settings: HTTPServerSettings,
        count: int,
        state: SupervisorState,
        receive: Callable[[WorkerHandle, Any], None],
        lost: Callable[[WorkerHandle, list[tuple[int, str]]], None],
    ) -> None:
        self.count = count
        self.handles: list[WorkerHandle] = []
        self._settings = settings
        self._state = state
        self._receive = receive
        self._on_lost = lost
        clock, http = asyncio.get_running_loop().time, settings.http
        self._answers = ResponseCache(clock)
        self._responses = ResponseMemory(clock, http.stored_responses, http.stored_response_bytes)
        self._started = 0
        self._accepting = anyio.CancelScope()
        self._tasks: anyio.abc.TaskGroup

    async def start(self, tasks: anyio.abc.TaskGroup, listeners: Sequence[socket.socket], start_seconds: float) -> None:
        """Start the workers, and accept connections for them in tasks of the group.

        A worker that takes longer than `start_seconds` to start is replaced.
        """
        self._tasks = tasks
        for _ in range(self.count):
            await self._spawn()
        tasks.start_soon(self._accept, listeners)
        tasks.start_soon(watch, self.handles, self._hung, start_seconds)

    def all_up(self, engine: int | None = None) -> bool:
        """Return whether all workers take requests, with this engine. Raises the failure of a worker."""
        self._state.check()
        return all(handle.up if engine is None else engine in handle.engines for handle in self.handles)

    def send_all(self, message: Any) -> None:
        for handle in self.handles:
            handle.channel.send(message)

    def reconfigure(self, settings: HTTPServerSettings) -> None:
        """Give all workers, and those that replace them, new settings."""
        self._settings = settings
        self.send_all(messages.Reconfigure(pickle.dumps(settings)))

    def kill(self) -> None:
        for handle in self.handles:
            handle.kill()

    async def _spawn(self) -> WorkerHandle:
        index, self._started = self._started, self._started + 1
        settings = self._settings
        handle = await WorkerHandle.spawn(index, settings, first=not self._state.serving, receive=self._receive, lost=self._lost)
        handle.answers = IdempotencyServer(self._answers, handle.channel.send)
        handle.responses = ResponsesServer(self._responses, handle.channel.send)
        self.handles.append(handle)
        if self._settings is not settings:
            # They were replaced before this worker could get a message about it.
            handle.channel.send(messages.Reconfigure(pickle.dumps(self._settings)))
        return handle

    def _lost(self, handle: WorkerHandle) -> None:
        """Handle a closed channel: the worker has ended, expectedly or not."""
        self.handles.remove(handle)
        handle.answers.close()
        handle.responses.close()
        left = handle.admission_server.close() if handle.admission_server is not None else []
        self._state.notify()
        if self._state.stopping:
            self._on_lost(handle, [])
            return
        handle.process.join(1)
        say(f"worker    {handle.process.pid} exited with code {handle.process.exitcode}; connections lost, {len(left)} requests aborted")
        self._on_lost(handle, left)
        if self._started == self.count + SPARES:
            self._state.fail(f"{SPARES} workers have died")
            return
        self._tasks.start_soon(self._replace)

    def _hung(self, handle: WorkerHandle, seconds: float) -> None:
        say(f"worker    {handle.process.pid} has not answered for {seconds:g} s; it is killed and replaced")
        # `_lost` follows when its channel closes.
        handle.process.kill()

    async def _replace(self) -> None:
        if self._state.stopping:
            return
        handle = await self._spawn()
        if self._state.stopping:
            handle.kill()

    # Connections

    async def _accept(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections until the last worker has drained.

        That worker also gets the connections that are still in the listen backlog.
        """
        with self._accepting:
            async with anyio.create_task_group() as tasks:
                for listener in listeners:
                    tasks.start_soon(accept, listener, self.handles)
        for listener in listeners:
            for connection in accept_waiting(listener):
                with connection:
                    hand(connection, self.handles)
            listener.close()
        for handle in self.handles:
            handle.part()

    def part(self, handle: WorkerHandle) -> None:
        """Hand no more connections to a worker that has drained."""
        if all(other.parting for other in self.handles if other is not handle):
            self._accepting.cancel()
        else:
            handle.part()
