"""Compares an engine's speed for a single request with the SLO."""

import uuid

import anyio
import attrs

from llmserve.admission import EngineSample
from llmserve.config import SLO
from llmserve.engine import Engine, EngineInfo, EnginePrompt, EngineStatistics, EngineTimings
from llmserve.errors import ConfigurationError
from llmserve.pooling.requests import GENERATE, Pooling
from llmserve.pooling.vectors import Pooled
from llmserve.request import Delta, Sampling

# Two probes, because the first request to an engine compiles and warms up what later requests
# reuse.
PROBES = 2
PROBE_TOKENS = 8
# A probe that takes longer is not used.
PROBE_SECONDS = 20.0


def engine_facts(statistics: EngineStatistics, info: EngineInfo, number: int = 0) -> EngineSample:
    """Convert the figures of the engine with this number for admission."""
    return EngineSample(
        engine=number,
        steps=statistics.busy_steps,
        busy_seconds=statistics.busy_seconds,
        running=statistics.running,
        waiting=statistics.waiting,
        kv_usage=statistics.kv_usage,
        kv_tokens=info.kv_cache_tokens,
        preemptions=statistics.preemptions,
        prompt_tokens=statistics.prompt_tokens,
        cached_tokens=statistics.prefix_cache_hits,
        generation_tokens=statistics.generation_tokens,
    )


@attrs.define
class _Times:
    """A sink that records when tokens come."""

    times: list[float] = attrs.field(factory=list)
    over: anyio.Event = attrs.field(factory=anyio.Event)

    def put(self, delta: Delta, timings: EngineTimings | None = None) -> None:
        # A vector comes without tokens.
        self.times += [anyio.current_time()] * (len(delta.token_ids) or isinstance(delta, Pooled))
        if delta.finish_reason is not None:
            self.over.set()

    def fail(self, error: Exception) -> None:
        self.over.set()


async def check_slo(engine: Engine, slo: SLO) -> None:
    """Run one short request alone and compare its times with the SLO.

    Raises ConfigurationError if the engine cannot meet the SLO even for a single request.
    """
    firsts, steps = [], []
    info = engine.info
    pooling = None if GENERATE in info.tasks else Pooling(task=info.tasks[0])
    prompt = EnginePrompt(token_ids=tuple(number % info.vocab_size for number in (1, 2, 3, 4)), pooling=pooling)
    sampling = Sampling(max_tokens=PROBE_TOKENS, ignore_eos=True, temperature=0)
    for _ in range(PROBES):
        sink, name, began = _Times(), f"llmserve-probe-{uuid.uuid4().hex}", anyio.current_time()
        with anyio.move_on_after(PROBE_SECONDS):
            await engine.submit(name, prompt, sampling, 0, sink)
            await sink.over.wait()
        await engine.abort(name)
        if sink.times and (pooling or len(sink.times) == PROBE_TOKENS):
            firsts.append(sink.times[0] - began)
        if len(sink.times) == PROBE_TOKENS:
            steps.append((sink.times[-1] - sink.times[0]) / (PROBE_TOKENS - 1))
    for field, promised, seconds, what in (
        ("slo.ttft", slo.ttft, firsts, "a single request's vector" if pooling else "the first token of a single request"),
        ("slo.tpot", slo.tpot, steps, "one step"),
    ):
        if promised is not None and seconds and promised < min(seconds):
            raise ConfigurationError(f"{field} is {promised:g} s, but {what} takes this engine {min(seconds):.3g} s")
