"""The seam between llmserve and whatever generates tokens: a few calls, and the facts they return.

An engine pushes: it is handed a sink for each request and puts deltas into it, in the event loop, as they come. Nothing
iterates, so there is no generator that could be left half-way, and no task has to be woken for a delta that nobody awaits
yet. `tests/contracts/engine.py` is the suite that every engine must pass.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import anyio.abc
import attrs

from llmserve.request import Delta, GenerationRequest, Sampling
from llmserve.structured import StructuredOutputs
from llmserve.tools import OutputParser


@attrs.frozen(kw_only=True)
class EngineInfo:
    """What is known once an engine is up. Figures in tokens; None where the engine does not tell.

    A step computes at most `max_num_batched_tokens` for at most `max_num_seqs` sequences. `adapters` are the names that a request may ask
    for in place of the model itself.
    """

    name: str
    version: str
    model: str
    device: str = "unknown"
    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    has_chat_template: bool = True
    adapters: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """The engine's own figures after its last step. `steps` only grows: progress, for a watchdog.

    `kv_usage` is the share of the KV cache in use, 0 to 1. Counters are since the engine's start. `told` is when the engine said so,
    on the monotonic clock; 0.0 where these are read from the engine itself. `busy_seconds` is what `busy_steps` of the steps took: those
    that followed another one without a pause between them. `fast_path_tokens` left vLLM by the fast path (`engines/vllm_fast_path.py`),
    `slow_path_tokens` through vLLM's own output processor; an engine with one path leaves both at 0.
    """

    told: float = 0.0
    steps: int = 0
    busy_steps: int = 0
    busy_seconds: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    fast_path_tokens: int = 0
    slow_path_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0


@attrs.frozen(kw_only=True)
class EnginePrompt:
    """A prompt ready for the engine: its token ids, and the text where there was one.

    Prompts with another `cache_salt` share nothing in the engine's prefix cache, even where they begin alike. `constraint` is what the
    engine holds the answer to: the request's schema in the engine's own form, or that of a call that is forced. `trace_headers` are W3C's,
    for an engine that traces. `adapter` is one of `EngineInfo.adapters`, None for the model itself.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    cache_salt: str | None = None
    constraint: StructuredOutputs | None = None
    trace_headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    adapter: str | None = None


@attrs.define(kw_only=True)
class EngineTimings:
    """What the engine says about one request when it ends; seconds on the monotonic clock, None where it does not tell."""

    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    cached_tokens: int = 0


class Sink(Protocol):
    """Where an engine puts what it makes for one request. Called in the event loop's thread; never blocks, never raises."""

    def put(self, delta: Delta, timings: EngineTimings | None = None) -> None:
        """More tokens. The last delta has a finish reason; nothing may follow it."""

    def fail(self, error: Exception) -> None:
        """No more will come, because of `error`, an `LLMServeError`."""


class Engine(Protocol):
    """Something that generates tokens for many requests at once."""

    @property
    def info(self) -> EngineInfo:
        """Raises RuntimeError before the engine is up."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start, call `task_status.started()` once requests can be taken, then serve until cancelled, and clean up.

        Returning or raising before being cancelled means that the engine died. An engine may be run again, and its counters go on.
        """

    def kill(self) -> None:
        """End what it has outside of this process at once, without its help: it hangs. `run()` is cancelled after that, or raises."""

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        """Render and tokenise, off the event loop where that takes time. Raises InvalidRequest."""

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> OutputParser | None:
        """Who takes the answer to this request apart; None where it is text and nothing else."""

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of some tokens. Raises InvalidRequest for ids out of the vocabulary."""

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        """Begin; returns when the engine has it. `sampling.max_tokens` is a number by now.

        If this raises, or is cancelled anywhere inside, the caller calls `abort`. Raises InvalidRequest, EngineError.
        """

    async def abort(self, request_id: str) -> None:
        """Stop and free it; unknown and finished ids are fine, and so is twice. Puts nothing into the sink afterwards."""

    def statistics(self) -> EngineStatistics:
        """Cheap enough to be asked at every step."""

    def watch(self, stepped: Callable[[], None]) -> None:
        """Call `stepped` after every step from now on, in the event loop, when the step's tokens are in their sinks. Where an engine cannot
        tell, it never calls it: admission then counts requests, and says so."""

    async def suspects(self, step_seconds: float) -> list[str]:
        """Its requests whose constraints are why its steps take `step_seconds` on average, the costliest first; empty where none is.

        May take some seconds. Raises EngineError where it cannot tell.
        """

    def check_health(self) -> None:
        """Raises EngineDead when the engine cannot serve."""


def checked(engine: Engine) -> Engine:
    """What a manager is given. Raises TypeError for the name of a model, for a class and for anything else that is not an engine."""
    if isinstance(engine, type) or not hasattr(engine, "submit"):
        words = f"the class {engine.__name__}" if isinstance(engine, type) else type(engine).__name__
        raise TypeError(f"engine must be an engine, such as SimulatedEngine(), not {words}; EngineManager.open() takes a model's name")
    return engine


def costly(costs: Mapping[str, float], step_seconds: float) -> list[str]:
    """Which requests make steps slow, the costliest first, by the seconds that each adds to a step: those with at least half of their
    share."""
    least = step_seconds / (2 * max(1, len(costs)))
    return sorted((name for name, seconds in costs.items() if seconds >= least), key=lambda name: -costs[name])
