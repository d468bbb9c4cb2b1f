"""VLLMEngine puts vLLM's AsyncLLM behind the engine protocol.

Only this module and its neighbours import vllm, and only inside functions.

`AsyncLLM.add_request()` returns a collector, whose `put()` vLLM's output handler calls for every
step of the request. vLLM's `generate()` would wrap it in a generator and an event. Here the
collector's `put` is the request's own receiver, which converts each output to a Delta and passes it
on at once. Outputs, errors and the engine's death all arrive this way. Written against vLLM 0.25.1 and
0.32.0.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread
import attrs

from llmserve.engine import EngineInfo, EnginePrompt, EngineStatistics, Sink
from llmserve.engines.processes.guard import ProcessGuard
from llmserve.engines.vllm.args import build_config, check_version, require_asyncio
from llmserve.engines.vllm.fast_path import FastPath, PathCounts, is_plain
from llmserve.engines.vllm.grammars.admission import Grammars
from llmserve.engines.vllm.grammars.ejection import Constrained
from llmserve.engines.vllm.grammars.sandbox import vocabulary
from llmserve.engines.vllm.info import Vocabulary, describe
from llmserve.engines.vllm.log import quiet
from llmserve.engines.vllm.lora import Adapters
from llmserve.engines.vllm.metrics import end_series, make_stat_loggers
from llmserve.engines.vllm.outputs import Receiver, translate
from llmserve.engines.vllm.params import check_version_for, sampling_params
from llmserve.engines.vllm.placement import ALONE, Placement
from llmserve.engines.vllm.pooling.outputs import VectorReceiver, pooling_params
from llmserve.engines.vllm.prompts import GONE, engine_input
from llmserve.engines.vllm.rendering import PromptRenderer
from llmserve.engines.vllm.scheduling.step_limit import LimitedSteps, StepLimit
from llmserve.engines.vllm.shared_core import PROCESS_NAMES, CoreClient, abort_in_all, interrupts_blocked, start_errors
from llmserve.engines.vllm.shutdown import END_SECONDS, discard, end
from llmserve.engines.vllm.start_checks import check_host, check_model
from llmserve.engines.vllm.start_errors import install
from llmserve.engines.vllm.steps import CoreSteps
from llmserve.engines.vllm.tool_parsers import Parsers, check_tool_parser
from llmserve.errors import ConfigurationError, EngineDead, EngineError, InvalidRequest
from llmserve.json_schema.enforceable import held
from llmserve.models import resolve
from llmserve.request import GenerationRequest, Sampling
from llmserve.runtime.heap import release, set_heap_aside
from llmserve.runtime.starting import start_in_thread
from llmserve.structured import FIELD, StructuredOutputs
from llmserve.tools import OutputParser

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# Seconds between two checks for the engine's death while no request is submitted. Open requests
# learn of it at once.
WATCH_SECONDS = 0.25
# The engine arguments that are not part of vLLM's configuration.
LOG_ARGUMENTS = ("disable_log_stats", "enable_log_requests")


class VLLMEngine(Vocabulary, LimitedSteps):
    """vLLM for one model: "bundled", a folder or a hub name.

    `engine_args` are vLLM's own arguments, by name. The engine needs asyncio. Hosts must guard
    their entry point with `if __name__ == "__main__":`, because vLLM may spawn its engine process.

    `run()` raises ConfigurationError for wrong engine arguments, models and host processes
    (docs/embedding.md). While it runs, the garbage collector ignores the objects that the host had
    when the process's first engine was up (`gc.freeze`). `placement` is its place in a pool.
    """

    def __init__(self, model: str, engine_args: Mapping[str, Any] | None = None, placement: Placement | None = None) -> None:
        self._model = model
        self._placement = placement or ALONE
        self._engine_args = dict(engine_args or {})
        self._tool_parser: str | None = self._engine_args.get("tool_call_parser")
        self._parsers: Parsers | None = None
        self._adapters = Adapters(self._engine_args)
        self._llm: AsyncLLM | None = None
        self._guard: ProcessGuard | None = None
        self._info: EngineInfo | None = None
        self._grammars: Grammars | None = None
        self._renderer: PromptRenderer | None = None
        self._open: set[str] = set()
        self._constrained = Constrained(self._open)
        self._steps, self._paths, self._limit = CoreSteps(), PathCounts(), StepLimit()
        self._death: EngineDead | None = None
        # Requests that vLLM aborted on its own, and when.
        self._dropped: deque[tuple[float, Sink]] = deque()
        self._stepped: Callable[[], None] = lambda: None
        # If set before `run()`, this engine is a client of a core that another process owns. Called
        # at each start for a client number. Raises EngineDead.
        self.connect: Callable[[], Awaitable[CoreClient]] | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise RuntimeError("the engine has not been started")
        if self._info.adapters is not self._adapters.names:
            self._info = attrs.evolve(self._info, adapters=self._adapters.names)
        return self._info

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        require_asyncio()
        if self.connect is None:
            check_host()
        self._open.clear()
        self._dropped.clear()
        self._steps.begin()
        async with self._launched() as llm:
            try:
                await self._prepare(llm)
                task_status.started()
                while not llm.errored and self._death is None:
                    await anyio.sleep(WATCH_SECONDS)
                    self._fail_dropped()
            finally:
                # An error's traceback keeps this frame, which must not keep the engine's resources.
                del llm
            raise self._death or EngineDead("vLLM's engine process died; its own log says why")

    async def _prepare(self, llm: "AsyncLLM") -> None:
        self._steps.begin(llm.engine_core.engine_ranks_managed)
        self._defaults = await anyio.to_thread.run_sync(llm.model_config.get_diff_sampling_param)
        names = self._tool_parser, llm.vllm_config.structured_outputs_config.reasoning_parser
        self._parsers = await anyio.to_thread.run_sync(Parsers, *names, llm.model_config, llm.get_tokenizer())
        await self._adapters.load_all(llm)
        self._info = await anyio.to_thread.run_sync(describe, llm, self._model, await llm.get_supported_tasks(), self._limit)
        await anyio.to_thread.run_sync(set_heap_aside, self)
        if self._guard is not None:
            await anyio.to_thread.run_sync(self._guard.note)
        if self._grammars is not None:
            # The next constraint starts the sandbox again, and its client gets the error if
            # that fails.
            with suppress(EngineError):
                await self._grammars.start()
        self._llm = llm
        FastPath(llm.output_processor, self._paths)

    def _fail_dropped(self) -> None:
        """Fail the requests that vLLM aborted, if the core did not die after it.

        A core that must stop aborts its requests before it ends; then its death is their error.
        """
        while self._dropped and time.monotonic() - self._dropped[0][0] > END_SECONDS:
            self._dropped.popleft()[1].fail(EngineError("the engine ended the request: abort"))

    @asynccontextmanager
    async def _launched(self) -> "AsyncIterator[AsyncLLM]":
        client = None if self.connect is None else await self.connect()
        self._death = None
        guard = self._guard = ProcessGuard() if client is None else None
        try:
            # In a thread, so that /health answers while the engine process loads the model.
            llm = await start_in_thread(partial(quiet()(self._build), client, guard), end=self.kill, discard=discard)
            try:
                structured = llm.vllm_config.structured_outputs_config
                known = partial(vocabulary, llm.vllm_config, llm.get_tokenizer())
                grammars = Grammars(known, free_space=not structured.disable_any_whitespace)
                # Another backend is the operator's choice, and it has its own bounds.
                self._grammars = grammars if structured.backend == "xgrammar" and llm.model_config.runner_type == "generate" else None
                # In a thread, because it reads the whole vocabulary.
                renderer = self._renderer = await anyio.to_thread.run_sync(PromptRenderer, llm)
                try:
                    yield llm
                finally:
                    grammars.close()
                    renderer.close()
            finally:
                if self._llm is None:
                    # The engine was never up, so an orderly end is not worth the wait.
                    self.kill()
                # References to the engine would keep its descriptors and threads.
                self._llm = self._grammars = self._renderer = None
                with anyio.CancelScope(shield=True):
                    await end(llm)
                del llm
        finally:
            self._guard = None
            end_series(self)
            self._limit.close()
            with anyio.CancelScope(shield=True):
                if guard is not None:
                    await anyio.to_thread.run_sync(guard.close)
                await anyio.to_thread.run_sync(release, self)

    def kill(self) -> None:
        """Kill the processes that this engine started, but no core of another process."""
        if self._guard is not None:
            self._guard.kill()

    def processes(self) -> list[int]:
        """Return the ids of the core's processes, if they are children. Raises EngineDead."""
        manager = getattr(self.running_llm.engine_core.resources, "engine_manager", None)
        return [process.pid for process in getattr(manager, "processes", ())]

    def _build(self, client: CoreClient | None, guard: ProcessGuard | None, check: Callable[[], None]) -> "AsyncLLM":
        if client is None:
            check_model(self._model, self._engine_args)
        try:
            import vllm
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ConfigurationError(f"the engine vllm cannot be imported ({error}); install llmserve[cuda] or llmserve[cpu]") from error
        check_version(vllm.__version__)
        check_tool_parser(self._tool_parser)
        check()
        context = UsageContext.OPENAI_API_SERVER
        loggers = make_stat_loggers(self, self._record, self._placement.number if client is None else client.engine)
        install()
        with start_errors(self._model, guard):
            if client is not None:
                arguments = client.arguments()
                return AsyncLLM.from_vllm_config(usage_context=context, stat_loggers=loggers, disable_log_stats=True, **arguments)
            config = build_config(resolve(self._model, check), self._engine_args, self._placement.sharing)
            check()
            guarded = guard.launching(*PROCESS_NAMES) if guard else nullcontext()
            logs = {"disable_log_stats": True} | {name: self._engine_args[name] for name in LOG_ARGUMENTS if name in self._engine_args}
            with self._placement.loading(check, self._limit.variables()), interrupts_blocked(), guarded:
                return AsyncLLM.from_vllm_config(config, usage_context=context, stat_loggers=loggers, **logs)

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        if self._llm is None or self._renderer is None:
            raise EngineDead(GONE)
        renderer = self._renderer
        check_version_for(request.sampling)
        self._adapters.check(request.sampling)
        constraint = await self._constraint(request)
        if isinstance(request.prompt, tuple):
            return EnginePrompt(token_ids=request.prompt, constraint=constraint)
        return attrs.evolve(await renderer.render(request), constraint=constraint)

    async def _constraint(self, request: GenerationRequest) -> StructuredOutputs | None:
        """Return the constraint for xgrammar, or the caller's own for another backend.

        Raises InvalidRequest or Overloaded.
        """
        forced = None
        if self._parsers is not None and request.tools is not None:
            # In a thread, because the schemas may have 65,536 characters.
            forced = await anyio.to_thread.run_sync(self._parsers.constraint, request)
        constraint = forced or request.sampling.structured_outputs
        if constraint is None or self._grammars is None:
            return constraint
        if forced is None:
            constraint = await anyio.to_thread.run_sync(held, constraint)
        await self._grammars.check(constraint, request.tenant, FIELD if forced is None else "tools")
        return constraint

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> OutputParser | None:
        return None if self._parsers is None else self._parsers.reader(request, prompt)

    async def load_adapter(self, name: str, path: str) -> None:
        if self.connect is not None:
            raise ConfigurationError("the engine belongs to several processes, and only one of them would know the adapter")
        await self._adapters.load(self._llm, name, path)

    async def unload_adapter(self, name: str) -> None:
        await self._adapters.unload(self._llm, name)

    # Requests

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        llm = self.running_llm
        pooling, tokenizer = prompt.pooling, llm.get_tokenizer()
        receiver = (VectorReceiver if pooling else Receiver)(request_id, sink, sampling, self._open, tokenizer.decode, self._drop)
        self._open.add(request_id)
        if (constraint := prompt.constraint or sampling.structured_outputs) is not None:
            self._constrained.add(request_id, constraint, receiver)
        try:
            inputs = engine_input(prompt)
            params = pooling_params(pooling, prompt) if pooling else sampling_params(sampling, constraint, self._defaults, tokenizer)
            traces = llm.vllm_config.observability_config.otlp_traces_endpoint is not None
            headers = dict(prompt.trace_headers) if traces and prompt.trace_headers else None
            adapter = self._adapters.request(prompt.adapter, self.info.model)
            collector = await llm.add_request(request_id, inputs, params, lora_request=adapter, priority=priority, trace_headers=headers)
        except InvalidRequest:
            self._open.discard(request_id)
            raise
        except Exception as error:
            self._open.discard(request_id)
            raise translate(error) from error
        # From now on every output goes straight to the receiver. Outputs during the await are
        # fetched first.
        collector.put = receiver.put
        if is_plain(sampling):
            FastPath.open(collector, receiver)
        if collector.output is not None:
            receiver.put(collector.output)

    def _drop(self, sink: Sink) -> None:
        self._dropped.append((time.monotonic(), sink))

    def declare_dead(self, death: EngineDead) -> None:
        """Note the death of a core that another process owns and watches."""
        self._death = death

    async def abort_foreign(self, request_ids: list[str]) -> None:
        """Abort requests that another client of the same core has left behind."""
        await abort_in_all(self.running_llm, request_ids)

    async def abort(self, request_id: str) -> None:
        self._open.discard(request_id)
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort(request_id)

    # Health and figures

    def statistics(self) -> EngineStatistics:
        """Return the core's figures at its last step.

        A core reports only when it steps, so its counts would stand still after the last abort.
        Therefore they are capped by the number of open requests.
        """
        last = self._steps.statistics
        changes: dict[str, Any] = {"fast_path_tokens": self._paths.fast, "slow_path_tokens": self._paths.slow}
        # The open requests of all clients of a core are known only to those clients together.
        if self.connect is None:
            running = changes["running"] = min(last.running, len(self._open))
            changes["waiting"] = min(last.waiting, len(self._open) - running)
            changes["kv_usage"] = last.kv_usage if self._open else 0.0
        return attrs.evolve(last, **changes)

    def watch(self, stepped: Callable[[], None]) -> None:
        self._stepped = stepped

    async def suspects(self, step_seconds: float) -> list[str]:
        return [] if self._grammars is None else await self._constrained.suspects(self._grammars, step_seconds)

    def check_health(self) -> None:
        if self._llm is None or self._llm.errored:
            raise EngineDead(GONE)

    def _record(self, core: int, scheduler_stats: Any, iteration_stats: Any) -> None:
        self._steps.record(core, scheduler_stats, iteration_stats, now=time.monotonic(), more=bool(self._open))
        self._stepped()

    @property
    def running_llm(self) -> "AsyncLLM":
        """The AsyncLLM, for what this adapter does not offer. Raises EngineDead if it is down."""
        if self._llm is None:
            raise EngineDead(GONE)
        return self._llm
