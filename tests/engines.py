"""Engines for tests: slow, stubborn or scripted, where the simulated one is too well-behaved."""

import anyio

from llmserve.engine import EngineInfo, EnginePrompt, EngineStatistics
from llmserve.request import Delta


class ScriptedEngine:
    """Does nothing by itself: the test puts deltas into the sinks. Awaits in every place where an engine may.

    `held` are the requests that it has and was not told to drop: what an engine would go on computing.
    """

    def __init__(self, *, submit_seconds=0.0, abort_seconds=0.0, tokenize_seconds=0.0, max_num_seqs=2):
        self.submit_seconds = submit_seconds
        self.abort_seconds = abort_seconds
        self.tokenize_seconds = tokenize_seconds
        self.max_num_seqs = max_num_seqs
        self.sinks = {}
        self.samplings = {}
        self.held = set()
        self.submitted = []
        self.aborted = []
        self.death = None

    @property
    def info(self):
        return EngineInfo(name="scripted", version="0", model="none", max_model_len=100, vocab_size=256, max_num_seqs=self.max_num_seqs)

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        self.death = anyio.Event()
        task_status.started()
        await self.death.wait()
        raise RuntimeError("the script says so")

    async def tokenize(self, request):
        await anyio.sleep(self.tokenize_seconds)
        prompt = request.prompt or ""
        return EnginePrompt(token_ids=prompt if isinstance(prompt, tuple) else tuple(prompt.encode()))

    async def detokenize(self, token_ids):
        return bytes(token_ids).decode()

    async def submit(self, request_id, prompt, sampling, priority, sink):
        self.held.add(request_id)
        self.sinks[request_id] = sink
        self.samplings[request_id] = sampling
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
        return EngineStatistics(running=len(self.held))

    def watch(self, stepped):
        pass

    def check_health(self):
        pass


def assert_quiescent(manager):
    """Nothing runs, waits, is held or is owed: what every test of an ending asserts."""
    statistics = manager.statistics()
    assert statistics.open == 0
    assert statistics.tokenizing == 0
    assert (statistics.running, statistics.waiting) == (0, 0)
    assert (statistics.engine.running, statistics.engine.waiting) == (0, 0)
