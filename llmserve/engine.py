"""The protocol between llmserve and an engine that generates tokens or makes vectors of prompts.

An engine pushes: it gets a sink for each request and puts deltas into it, in the event loop, as
they come. There is no generator that a caller could leave half-way. No task wakes for a delta that
no task awaits yet. `tests/contracts/engine_contract.py` is the suite that every engine must pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import anyio.abc
import attrs

from llmserve.pooling.requests import GENERATE, Pooling
from llmserve.request import Delta, GenerationRequest, Sampling
from llmserve.structured import StructuredOutputs
from llmserve.tools import OutputParser


@attrs.frozen(kw_only=True)
class EngineInfo:
    """Figures of an engine that is up, in tokens; None where the engine does not report one.

    A step computes at most `max_num_batched_tokens` for at most `max_num_seqs` sequences.
    With `prefix_caching` the engine keeps the beginnings of prompts that it has computed. `adapters`
    are the names that a request may select in place of the model itself.

    Attributes:
        min_step_tokens: The smallest number that `LimitsSteps.limit_step` takes; None if the
            maximum cannot change while the engine is up.
        tasks: What the model does: "generate", "embed" or "classify".
        embedding_size: Number of elements of an embedding; 0 if the model makes none.
        dimensions: The smaller sizes of embeddings that a request may ask for; empty if the model
            has only one size.
        labels: The names of a classifier's classes.
        max_images: Maximum number of images of a request; 0 for a model that takes none.
    """

    name: str
    version: str
    model: str
    device: str = "unknown"
    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    min_step_tokens: int | None = None
    kv_cache_tokens: int | None = None
    has_chat_template: bool = True
    prefix_caching: bool = True
    adapters: tuple[str, ...] = ()
    tasks: tuple[str, ...] = (GENERATE,)
    embedding_size: int = 0
    dimensions: Sequence[int] = ()
    labels: tuple[str, ...] = ()
    max_images: int = 0


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """The engine's own figures after its last step.

    Attributes:
        told: When the engine reported these figures, on the monotonic clock. 0.0 for figures read
            from the engine directly.
        steps: Steps so far; only grows, so a watchdog can see progress.
        busy_steps, busy_seconds: Steps that followed another one without a pause, and the time that
            they took.
        running, waiting: Requests in the engine's batch and in its queue.
        kv_usage: Share of the KV cache in use, 0 to 1.
        fast_path_tokens, slow_path_tokens: Tokens that left vLLM by the fast path
            (`engines/vllm/fast_path.py`) and through vLLM's own output processor. An engine with
            one path leaves both at 0.

    The other attributes count since the engine's start.
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
    """A prompt ready for the engine.

    Attributes:
        token_ids: The prompt's tokens.
        text: The prompt's text, if it had one.
        cache_salt: Prompts with different salts share nothing in the engine's prefix cache, even
            where they begin alike.
        constraint: The request's schema in the engine's own form, or that of a forced call; the
            engine enforces it.
        trace_headers: W3C trace headers, for an engine that traces.
        adapter: One of `EngineInfo.adapters`, or None for the model itself.
        pooling: What the engine makes of the prompt; None for an answer of tokens.
        images: The prompt's images, in the engine's own form.
        images_key: Tells prompts with the same tokens and different images apart.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    cache_salt: str | None = None
    constraint: StructuredOutputs | None = None
    trace_headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    adapter: str | None = None
    pooling: Pooling | None = None
    images: Any = attrs.field(default=None, repr=False, eq=False)
    images_key: str = ""


@attrs.define(kw_only=True)
class EngineTimings:
    """The engine's times of one request in monotonic seconds; None if it does not report one."""

    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    cached_tokens: int = 0


class Sink(Protocol):
    """Receives an engine's output for one request.

    The engine calls it in the event loop's thread. Its methods never block and never raise.
    """

    def put(self, delta: Delta, timings: EngineTimings | None = None) -> None:
        """Add tokens. The last delta has a finish reason, and nothing may follow it."""

    def fail(self, error: Exception) -> None:
        """End the output because of `error`, an `LLMServeError`."""


class Engine(Protocol):
    """Generates tokens, or makes vectors, for many requests at once."""

    @property
    def info(self) -> EngineInfo:
        """The engine's figures. Raises RuntimeError before the engine is up."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start, serve until cancelled, and clean up.

        Call `task_status.started()` once requests can be accepted. Returning or raising before the
        cancellation means that the engine died. An engine may run again; its counters continue.
        """

    def kill(self) -> None:
        """End all its other processes at once, without their help: the engine hangs.

        After that `run()` is cancelled, or it raises.
        """

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        """Render and tokenise, off the event loop if that takes time. Raises InvalidRequest."""

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> OutputParser | None:
        """Return the parser for the answer to this request; None if the answer is plain text."""

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """Return the text of the tokens. Raises InvalidRequest for ids outside the vocabulary."""

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        """Add a request; return when the engine has it. `sampling.max_tokens` is always a number.

        For a prompt with `pooling` the sink gets one `Pooled` delta, with the finish reason "stop",
        and `sampling` has no meaning.

        If this raises or is cancelled at any point, the caller calls `abort`.
        Raises InvalidRequest or EngineError.
        """

    async def abort(self, request_id: str) -> None:
        """Stop and free a request. Nothing goes into its sink afterwards.

        Unknown and finished ids are allowed, and so are repeated calls.
        """

    def statistics(self) -> EngineStatistics:
        """Return the figures after the last step; cheap, because it is called at every step."""

    def watch(self, stepped: Callable[[], None]) -> None:
        """Call `stepped` in the event loop after every step.

        The step's tokens are already in their sinks then. An engine that cannot observe its steps
        never calls it. Admission then only counts requests, and logs that it does.
        """

    async def suspects(self, step_seconds: float) -> list[str]:
        """Return the requests whose constraints make steps take `step_seconds` on average.

        The costliest comes first; the list may be empty. The call may take some seconds.
        Raises EngineError if the engine cannot tell.
        """

    def check_health(self) -> None:
        """Raise EngineDead if the engine cannot serve."""


@runtime_checkable
class KnowsVocabulary(Protocol):
    """What an engine may offer in addition: its tokenizer's vocabulary."""

    async def token_strings(self, token_ids: tuple[int, ...]) -> list[str]:
        """Return the vocabulary's string of each token. Raises InvalidRequest for unknown ids."""

    async def tokenizer_info(self) -> dict[str, Any]:
        """Return the tokenizer's settings, with its class as `tokenizer_class`."""


@runtime_checkable
class LoadsAdapters(Protocol):
    """What an engine may offer in addition: adapters that come and go while it is up."""

    async def load_adapter(self, name: str, path: str) -> None:
        """Add an adapter, also at later starts. Raises ConfigurationError, and then changes nothing.

        An engine that is not up loads it at its next start. If that fails, it gives the adapter up.
        """

    async def unload_adapter(self, name: str) -> None:
        """Remove an adapter, if the engine has it; its started requests go on.

        Raises EngineDead if the engine dies meanwhile.
        """


@runtime_checkable
class LimitsSteps(Protocol):
    """What an engine may offer in addition: a smaller maximum of tokens in a step while it is up."""

    def allow_step_limit(self) -> None:
        """Prepare for `limit_step`; called before the first start.

        After a start, `info.min_step_tokens` is a number, unless the operator has set
        `max_num_batched_tokens`, or the engine cannot limit its steps with these settings.
        """

    def limit_step(self, tokens: int) -> None:
        """Compute at most `tokens` in a step while a request is answered, also after a restart.

        Cheap, because it is called at every step. It never raises `max_num_batched_tokens`.
        """


def combined(parts: Sequence[EngineStatistics]) -> EngineStatistics:
    """Add up the figures of several engines; the share of the cache in use is the mean."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in attrs.fields(EngineStatistics) if field.name not in ("told", "kv_usage")]
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    usage = sum(part.kv_usage for part in parts) / len(parts)
    return EngineStatistics(told=max(part.told for part in parts), kv_usage=usage, **sums)


def checked(engines: Engine | Sequence[Engine]) -> tuple[Engine, ...]:
    """Return the engines. Raises TypeError if one is none, such as a model's name or a class."""
    found = tuple(engines) if isinstance(engines, (list, tuple)) else (cast("Engine", engines),)
    if not found:
        raise TypeError("engine must be an engine or a list of engines, and the list is empty")
    if len(found) != len({id(engine) for engine in found}):
        raise TypeError("each engine of a list must be an object of its own")
    for engine in found:
        _check(engine)
    return found


def _check(engine: object) -> None:
    if isinstance(engine, type) or not hasattr(engine, "submit"):
        words = f"the class {engine.__name__}" if isinstance(engine, type) else type(engine).__name__
        raise TypeError(f"engine must be an engine, such as SimulatedEngine(), not {words}; EngineManager.open() takes a model's name")


def costly(costs: Mapping[str, float], step_seconds: float) -> list[str]:
    """Return the requests that make steps slow, the costliest first.

    `costs` are the seconds that each request adds to a step. A request counts if it adds at least
    half of an equal share.
    """
    least = step_seconds / (2 * max(1, len(costs)))
    return sorted((name for name, seconds in costs.items() if seconds >= least), key=lambda name: -costs[name])
