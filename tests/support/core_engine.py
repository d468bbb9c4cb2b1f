"""An engine whose core is a process of its own, for tests of deaths: `core.CoreProcess` behind `Engine`.

It reports a death as `VLLMEngine` does. A core that ends fails the open requests and `run()`. A
core that hangs makes no steps, and only the supervisor notices that.
"""

import asyncio
import time
from contextlib import suppress

import anyio
import anyio.to_thread
import attrs
import psutil

from llmserve import EngineDead, EngineStatistics
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.runtime.starting import start_in_thread

from .core import HELLO, CoreProcess, receive, send


class CoreEngine(SimulatedEngine):
    """The simulated engine's tokenizer here, and its steps in a core.

    `launched` is called with each new process of a core, before that is up.
    """

    def __init__(self, config=None, *, model="core", launched=lambda _: None):
        super().__init__(config, model=model)
        self._launched = launched
        self._sinks = {}
        self._writer = None
        self._death = None
        self._last = EngineStatistics()
        self._made_steps = self._made_tokens = 0
        self.core = None
        # The number of cores that hung at their orderly end.
        self.hung = 0
        # If set, this engine is a client of a core that another process owns and watches.
        self.connect = None

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        self._sinks.clear()
        self._last = EngineStatistics()
        core = CoreProcess(self.config, self._begin) if self.connect is None else None
        try:
            address = await (self._start(core) if core is not None else self.connect())
            # A core that is reported dead before that is the last one.
            self._death = asyncio.get_running_loop().create_future()
            reader, self._writer = await asyncio.open_unix_connection(address)
            following = asyncio.create_task(self._follow(reader, up := asyncio.Event()))
            try:
                await up.wait()
                if self._up:
                    task_status.started()
                await self._death
            finally:
                following.cancel()
        finally:
            if self._writer is not None:
                self._writer.transport.abort()
            self._up, self._writer, self.core = False, None, None
            if core is not None:
                with anyio.CancelScope(shield=True):
                    if not await anyio.to_thread.run_sync(core.stop):
                        self.hung += 1

    def _begin(self, process):
        self.core = psutil.Process(process.pid)
        self._launched(self.core)

    async def _start(self, core):
        core.configure()
        await start_in_thread(lambda _: core.launch(), end=core.kill)
        return core.client()

    async def _follow(self, reader, up):
        with suppress(OSError, EOFError):
            self._up = await receive(reader) == HELLO
            up.set()
            while True:
                self._take(*await receive(reader))
        up.set()
        # The core's owner reports its death to the other clients.
        if self.connect is None:
            self.declare_dead(EngineDead("the core's process ended"))
            sinks, self._sinks = self._sinks, {}
            for sink in sinks.values():
                sink.fail(EngineDead("the core's process ended"))

    def _take(self, outputs, statistics):
        self._made_steps += 1
        if statistics is not None:
            self._last = attrs.evolve(statistics, told=time.monotonic())
        for request_id, output, timings in outputs:
            sink = self._sinks.get(request_id)
            # The request may have been aborted since.
            if sink is None:
                continue
            if isinstance(output, Exception):
                del self._sinks[request_id]
                sink.fail(output)
                continue
            if output.finish_reason is not None:
                del self._sinks[request_id]
            self._made_tokens += len(output.token_ids)
            sink.put(output, timings)
        self._stepped()

    def declare_dead(self, death):
        self._up = False
        if self._death is not None and not self._death.done():
            self._death.set_exception(death)

    def kill(self):
        if self.core is not None:
            self.core.kill()

    async def tokenize(self, request):
        self.check_health()
        return await super().tokenize(request)

    async def submit(self, request_id, prompt, sampling, priority, sink):
        self.check_health()
        self._sinks[request_id] = sink
        send(self._writer, ("submit", request_id, prompt, sampling, priority))
        await anyio.lowlevel.checkpoint()

    async def abort(self, request_id):
        self._sinks.pop(request_id, None)
        await self.abort_foreign([request_id])

    async def abort_foreign(self, request_ids):
        """Abort requests, also those that another client of the same core has left behind."""
        for request_id in request_ids:
            if self._writer is not None:
                send(self._writer, ("abort", request_id))

    def statistics(self):
        """Return the core's figures at its last step; the core reports nothing between steps."""
        running = self._last.running if self.connect else min(self._last.running, len(self._sinks))
        return attrs.evolve(
            self._last,
            steps=self._made_steps,
            generation_tokens=self._made_tokens,
            running=running,
            waiting=self._last.waiting if self.connect else min(self._last.waiting, len(self._sinks) - running),
            kv_usage=self._last.kv_usage if self.connect or self._sinks else 0.0,
        )
