"""SimulatedEngine behaves like a real engine, but has no model.

It has continuous batching with chunked prefill, paged KV blocks with prefix sharing, preemption by
recomputation, seeded answers and scripted faults. It runs on asyncio and trio, in real time,
faster, or on a virtual clock. Its step times are round figures of the order of a small model on one
GPU. They are not measurements.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from llmserve.engine import EngineInfo, EnginePrompt, EngineStatistics, EngineTimings, Sink, costly
from llmserve.engines.simulated.answers import ToolCallParser, answer, calls
from llmserve.engines.simulated.images import image_ids
from llmserve.engines.simulated.paging import BlockPool
from llmserve.engines.simulated.scheduler import Scheduler, Sequence
from llmserve.engines.simulated.text import END, VOCAB_SIZE, StopWatcher, Writer, encode, render_chat
from llmserve.engines.simulated.vectors import SIZE, vector
from llmserve.engines.simulated.vocabulary import Vocabulary
from llmserve.errors import ConfigurationError, EngineDead, EngineError, ModelNotFound, PromptTooLong
from llmserve.images.decoding import ImageDecoder
from llmserve.images.parts import MAX_IMAGES
from llmserve.pooling.requests import CLASSIFY, EMBED, GENERATE, Pooling, pair_of
from llmserve.pooling.vectors import Pooled
from llmserve.request import Delta, GenerationRequest, Sampling


@attrs.frozen(kw_only=True)
class Fault:
    """A fault at a step, counted from 1.

    The kinds are "die", "hang" (until cancelled), "slow" (once, for `seconds`) and "fail" (the
    oldest running request).
    """

    step: int
    kind: Literal["die", "hang", "slow", "fail"]
    seconds: float = 0.0


@attrs.frozen(kw_only=True)
class SimulatedConfig:
    """The engine's size and speed.

    Attributes:
        time_scale: Factor for every delay: 0 for no delays, 1 for the step times as they are.
        start_seconds, abort_seconds: Duration of a start, and of the confirmation of an abort.
        grammar_token_seconds: If set, answers ignore constraints. A step then takes this long for
            each token of every request with a grammar, and no longer for other kinds of
            constraints.
        adapters: Names of adapters; each gives different answers.
        tasks, labels: As in `EngineInfo`.
        image_tokens: Number of tokens of an image; 0 for a model that takes none.
        faults: Scripted faults.
    """

    max_model_len: int = 2048
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    num_blocks: int = 2048
    block_size: int = 16
    prefix_caching: bool = True
    seed: int = 0
    time_scale: float = 1.0
    step_seconds: float = 4e-3
    prefill_token_seconds: float = 4e-5
    sequence_seconds: float = 5e-5
    kv_token_seconds: float = 3e-8
    start_seconds: float = 0.0
    abort_seconds: float = 0.0
    grammar_token_seconds: float = 0.0
    adapters: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    tasks: tuple[str, ...] = attrs.field(default=(GENERATE, EMBED), converter=tuple[str, ...])
    image_tokens: int = 0
    labels: tuple[str, ...] = attrs.field(default=("LABEL_0",), converter=tuple[str, ...])
    faults: tuple[Fault, ...] = attrs.field(default=(), converter=tuple[Fault, ...])

    def __attrs_post_init__(self) -> None:
        for name, value in attrs.asdict(self, recurse=False).items():
            if isinstance(value, (int, float)) and (not math.isfinite(value) or value < 0):
                raise ConfigurationError(f"the engine argument {name} must not be negative: {value!r}")
        if self.max_model_len > self.num_blocks * self.block_size:
            raise ConfigurationError("num_blocks * block_size must hold at least max_model_len tokens")


class SimulatedEngine(Vocabulary):
    """An `llmserve.engine.Engine` that passes the same contract tests as vLLM's.

    With `fixed_step`, the number of tokens in a step is the operator's choice.
    """

    def __init__(self, config: SimulatedConfig | None = None, *, model: str = "simulated", fixed_step: bool = False) -> None:
        self.config = config or SimulatedConfig()
        self._model = model
        self._faults = {fault.step: fault for fault in self.config.faults}
        self._nonce = 0
        # Names of the adapters, and where they came from.
        self._adapters = dict.fromkeys(self.config.adapters, "")
        self._decoder = ImageDecoder()
        self._stepped: Callable[[], None] = lambda: None
        self._busy_steps, self._busy_seconds = 0, 0.0
        self._steps = self._prompt_tokens = self._generation_tokens = 0
        self.scheduler = Scheduler(self._empty_cache(), self.config.max_num_seqs, self.config.max_num_batched_tokens)
        self._fixed_step = fixed_step
        self._least: int | None = None
        self._life: anyio.CancelScope | None = None
        self._up = False
        self._arrival: anyio.Event | None = None

    @classmethod
    def from_args(cls, model: str, args: Mapping[str, Any]) -> Self:
        """Make an engine from named arguments. Raises ConfigurationError for wrong ones."""
        defaults = SimulatedConfig()
        known = [field.name for field in attrs.fields(SimulatedConfig) if field.name != "faults"]
        for name, value in args.items():
            if name not in known:
                raise ConfigurationError(f"unknown engine argument {name!r}; the simulated engine has {', '.join(known)}")
            default = getattr(defaults, name)
            same = type(value) is type(default) or (type(default), type(value)) in ((float, int), (tuple, list))
            if not same:
                raise ConfigurationError(f"the engine argument {name} must be of type {type(default).__name__}, not {value!r}")
        return cls(SimulatedConfig(**args), model=model, fixed_step="max_num_batched_tokens" in args)

    def _empty_cache(self) -> BlockPool:
        return BlockPool(self.config.num_blocks, self.config.block_size, prefix_caching=self.config.prefix_caching)

    # The protocol

    @property
    def info(self) -> EngineInfo:
        config = self.config
        return EngineInfo(
            name="simulated",
            version="1",
            model=self._model,
            device="none",
            max_model_len=config.max_model_len,
            vocab_size=VOCAB_SIZE,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            min_step_tokens=self._least,
            kv_cache_tokens=config.num_blocks * config.block_size,
            prefix_caching=config.prefix_caching,
            adapters=tuple(self._adapters),
            tasks=config.tasks,
            embedding_size=SIZE if EMBED in config.tasks else 0,
            dimensions=range(1, SIZE + 1) if EMBED in config.tasks else (),
            labels=config.labels if CLASSIFY in config.tasks else (),
            max_images=MAX_IMAGES if config.image_tokens else 0,
        )

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        self.scheduler.reset(self._empty_cache())
        with anyio.CancelScope() as self._life:
            await anyio.sleep(self.config.start_seconds * self.config.time_scale)
            self._up = True
            task_status.started()
            await self._serve()
        raise EngineDead("the simulated engine was killed")

    def kill(self) -> None:
        if self._life is not None:
            self._life.cancel()

    async def _serve(self) -> None:
        try:
            while True:
                began: float | None = anyio.current_time()
                if not self.scheduler.waiting and not self.scheduler.running:
                    self._arrival = anyio.Event()
                    await self._arrival.wait()
                    began = None
                await self._step()
                if began is not None:
                    self._busy_steps += 1
                    self._busy_seconds += anyio.current_time() - began
                self._stepped()
        finally:
            self._up = False

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        form = None if self.config.grammar_token_seconds else answer(request)
        if isinstance(request.prompt, tuple):
            return EnginePrompt(token_ids=request.prompt, constraint=form)
        text = request.prompt if request.prompt is not None else render_chat(request.messages or ())
        if len(text) > self.config.max_model_len and request.truncate_prompt_tokens is None:
            # As in vLLM's engine: no token stands for less than a character.
            raise PromptTooLong(len(text.encode()), self.config.max_model_len, request.prompt_field)
        pair = pair_of(request)
        if pair is None:
            ids = await image_ids(self._decoder, request, self.config.image_tokens)
            return EnginePrompt(token_ids=ids + encode(text), text=text, constraint=form)
        pooling = Pooling(task=CLASSIFY, second=len(encode(text)) + 1)
        return EnginePrompt(token_ids=(*encode(text), END, *encode(pair)), pooling=pooling)

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> ToolCallParser | None:
        return ToolCallParser() if calls(request) else None

    async def load_adapter(self, name: str, path: str) -> None:
        if not await anyio.Path(path).is_dir():
            raise ConfigurationError(f"there is no folder {path} for the adapter {name!r}")
        self._adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        self._adapters.pop(name, None)

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        if not self._up:
            raise EngineDead("the simulated engine is not running")
        self._nonce += 1
        seed, adapter = str(self.config.seed), prompt.adapter
        if adapter is not None:
            if adapter not in self._adapters:
                raise ModelNotFound(adapter, self._model, "adapter")
            seed += adapter + self._adapters[adapter]
        sequence = Sequence(
            id=request_id,
            tokens=list(prompt.token_ids),
            prompt_length=len(prompt.token_ids),
            sampling=sampling,
            priority=priority,
            sink=sink,
            writer=Writer(seed, prompt.token_ids, sampling, self._nonce, prompt.constraint),
            stops=StopWatcher(sampling),
            timings=EngineTimings(queued=anyio.current_time()),
            pooling=prompt.pooling,
        )
        # Registered before the first await, without a roll-back, as in vLLM: a cancelled submit
        # leaves the sequence here.
        self.scheduler.waiting.append(sequence)
        if self._arrival is not None:
            self._arrival.set()
        await anyio.lowlevel.checkpoint()

    async def abort(self, request_id: str) -> None:
        if self.config.abort_seconds:
            await anyio.sleep(self.config.abort_seconds * self.config.time_scale)
        self.scheduler.drop(request_id)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            steps=self._steps,
            busy_steps=self._busy_steps,
            busy_seconds=self._busy_seconds,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_usage=self.scheduler.pool.usage,
            preemptions=self.scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_cache_queries=self.scheduler.queries,
            prefix_cache_hits=self.scheduler.hits,
        )

    def watch(self, stepped: Callable[[], None]) -> None:
        self._stepped = stepped

    def allow_step_limit(self) -> None:
        self._least = None if self._fixed_step else self.config.max_num_seqs

    def limit_step(self, tokens: int) -> None:
        self.scheduler.step_tokens = tokens

    async def suspects(self, step_seconds: float) -> list[str]:
        await anyio.lowlevel.checkpoint()
        costs = {one.id: one.grammar_tokens * self.config.grammar_token_seconds * self.config.time_scale for one in self.scheduler.running}
        return costly(costs, step_seconds)

    def check_health(self) -> None:
        if not self._up:
            raise EngineDead("the simulated engine is not running")

    # One step

    async def _step(self) -> None:
        self._steps += 1
        await self._suffer_faults()
        work = self.scheduler.schedule()
        prefilled = sum(count for _, count in work if count > 1)
        kv_tokens = sum(sequence.computed for sequence, _ in work)
        config = self.config
        seconds = config.step_seconds + config.prefill_token_seconds * prefilled
        seconds += config.sequence_seconds * len(work) + config.kv_token_seconds * kv_tokens
        seconds += config.grammar_token_seconds * sum(sequence.grammar_tokens for sequence, _ in work)
        await anyio.sleep(seconds * config.time_scale)
        running = self.scheduler.running
        for sequence, count in work:
            # The sequence may have been aborted or preempted during the step.
            if sequence in running:
                self._advance(sequence, count)

    async def _suffer_faults(self) -> None:
        fault = self._faults.get(self._steps)
        if fault is None:
            return
        if fault.kind == "die":
            raise EngineDead(f"scripted death at step {fault.step}")
        if fault.kind == "hang":
            await anyio.sleep_forever()
        if fault.kind == "slow":
            await anyio.sleep(fault.seconds)
        elif self.scheduler.running:
            victim = self.scheduler.running[0]
            self.scheduler.drop(victim.id)
            victim.sink.fail(EngineError(f"scripted failure at step {fault.step}"))

    def _advance(self, sequence: Sequence, count: int) -> None:
        first = sequence.computed < sequence.prompt_length
        sequence.computed += count
        if first:
            self._prompt_tokens += min(count, sequence.prompt_length)
        if sequence.computed < len(sequence.tokens):
            return
        if first:
            self.scheduler.pool.remember(sequence.tokens, sequence.blocks)
        if sequence.pooling is None:
            self._emit(sequence)
        else:
            self.scheduler.drop(sequence.id)
            data = vector(sequence.tokens, sequence.pooling, self.config.seed, len(self.config.labels))
            sequence.sink.put(Pooled("", (), "stop", data=data), sequence.timings)

    def _emit(self, sequence: Sequence) -> None:
        token = sequence.writer.next()
        sequence.tokens.append(token)
        self._generation_tokens += 1
        now = anyio.current_time()
        if sequence.timings.first_token is None:
            sequence.timings.first_token = now
        sequence.timings.last_token = now
        sampling = sequence.sampling
        text, stop = sequence.stops.feed(sequence.writer.text(token) if sampling.detokenize else "")
        reason = "stop" if token == END or stop is not None or token in sampling.stop_token_ids else None
        if reason is None and sequence.generated >= (sampling.max_tokens or 0):
            reason = "length"
        if reason is not None:
            text += "" if stop is not None else sequence.stops.flush()
            self.scheduler.drop(sequence.id)
        logprob = sequence.writer.logprobs(token)
        stopped_by = stop if stop is not None else token if token in sampling.stop_token_ids else None
        prompt = sequence.writer.prompt_logprobs() if sequence.generated == 1 else None
        logprobs = None if logprob is None else (logprob,)
        sequence.sink.put(Delta(text, (token,), reason, stopped_by, logprobs, prompt), sequence.timings)
