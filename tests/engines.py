"""Slow, stubborn or scripted engines, for tests for which the simulated one is too well-behaved."""

from collections.abc import Callable
from typing import Any

import anyio

from llmserve.engine import EngineInfo, EnginePrompt, EngineStatistics
from llmserve.errors import EngineDead
from llmserve.request import Delta


class ScriptedEngine:
    """An engine that does nothing by itself: the test puts deltas into the sinks.

    It awaits wherever an engine may. `held` are its requests that were not aborted: an engine would
    go on computing them.
    """

    def __init__(self, *, start_seconds=0.0, submit_seconds=0.0, abort_seconds=0.0, tokenize_seconds=0.0, max_num_seqs=2):
        self.start_seconds = start_seconds
        self.submit_seconds = submit_seconds
        self.abort_seconds = abort_seconds
        self.tokenize_seconds = tokenize_seconds
        self.max_num_seqs = max_num_seqs
        self.sinks = {}
        self.samplings = {}
        self.prompts = {}
        self.held = set()
        self.submitted = []
        self.aborted = []
        self.death = None
        self.steps = 0
        self.starts = 0
        self.make_reader: Callable[[Any], Any] = lambda _: None
        # The numbers of the starts that fail.
        self.fails_to_start = set()

    @property
    def info(self):
        return EngineInfo(name="scripted", version="0", model="none", max_model_len=100, vocab_size=256, max_num_seqs=self.max_num_seqs)

    async def asked(self):
        """Wait until a request has reached the engine."""
        while not self.sinks:
            await anyio.sleep(0.001)

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        self.starts += 1
        if self.starts in self.fails_to_start:
            raise EngineDead(f"start {self.starts} fails")
        if self.starts > 1:
            await anyio.sleep(self.start_seconds)
        self.death = anyio.Event()
        self.held.clear()
        task_status.started()
        try:
            await self.death.wait()
        finally:
            # However the engine ends, its requests are gone.
            self.held.clear()
            self.death = None
        raise EngineDead("the script says so")

    def kill(self):
        self.death.set()

    def _require_life(self):
        if self.death is None or self.death.is_set():
            raise EngineDead("it is not running")

    async def tokenize(self, request):
        await anyio.sleep(self.tokenize_seconds)
        self._require_life()
        prompt = request.prompt or ("chat" if request.messages else "")
        return EnginePrompt(token_ids=prompt if isinstance(prompt, tuple) else tuple(prompt.encode()))

    def reader(self, request, prompt):
        return self.make_reader(request)

    async def detokenize(self, token_ids):
        return bytes(token_ids).decode()

    async def submit(self, request_id, prompt, sampling, priority, sink):
        self._require_life()
        self.held.add(request_id)
        self.sinks[request_id] = sink
        self.samplings[request_id] = sampling
        self.prompts[request_id] = prompt
        self.submitted.append(request_id)
        await anyio.sleep(self.submit_seconds)

    async def abort(self, request_id):
        await anyio.sleep(self.abort_seconds)
        self.held.discard(request_id)
        self.aborted.append(request_id)

    def finish(self, request_id, text="x"):
        self.held.discard(request_id)
        self.sinks[request_id].put(Delta(text, (1,), "stop"))

    def statistics(self):
        return EngineStatistics(steps=self.steps, running=len(self.held))

    def watch(self, stepped):
        pass

    async def suspects(self, step_seconds):
        return []

    def check_health(self):
        pass
