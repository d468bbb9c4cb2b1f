"""VLLMEngine puts vLLM's AsyncLLM behind the engine protocol.

Only this module and its neighbours import vllm, and only inside functions.

`AsyncLLM.add_request()` returns a collector, whose `put()` vLLM's output handler calls for every
step of the request. vLLM's `generate()` would wrap it in a generator and an event. Here the
collector's `put` is the request's own receiver, which converts each output to a Delta and passes it
on at once. Outputs, errors and the engine's death all arrive this way.

Written against vLLM 0.25.1 and 0.32.0.
"""

import copy
import dataclasses
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
from llmserve.engines.vllm.args import build_engine_args, check_version, require_asyncio, version
from llmserve.engines.vllm.fast_path import FastPath, PathCounts, is_plain
from llmserve.engines.vllm.grammars.admission import Grammars
from llmserve.engines.vllm.grammars.ejection import Constrained
from llmserve.engines.vllm.grammars.sandbox import vocabulary
from llmserve.engines.vllm.log import quiet
from llmserve.engines.vllm.lora import ARGUMENT, Adapters
from llmserve.engines.vllm.metrics import make_stat_loggers
from llmserve.engines.vllm.outputs import Receiver, brief, translate
from llmserve.engines.vllm.params import check_version_for, sampling_params
from llmserve.engines.vllm.prompts import PromptEncoder, PromptJob, can_encode
from llmserve.engines.vllm.shared_core import PROCESS_NAMES, CoreClient, interrupts_blocked, start_errors
from llmserve.engines.vllm.shutdown import END_SECONDS, discard, end
from llmserve.engines.vllm.start_checks import check_host, check_model
from llmserve.engines.vllm.start_errors import install
from llmserve.engines.vllm.steps import CoreSteps
from llmserve.engines.vllm.tool_parsers import Parsers, check_tool_parser, template_tools
from llmserve.errors import ConfigurationError, EngineDead, EngineError, InvalidRequest, PromptTooLong
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


class VLLMEngine:
    """vLLM for one model: "bundled", a folder or a hub name.

    `engine_args` are vLLM's own arguments, by name. The engine needs asyncio. Hosts must guard
    their entry point with `if __name__ == "__main__":`, because vLLM may spawn its engine process.

    `run()` raises ConfigurationError for wrong engine arguments, models and host processes
    (docs/embedding.md). While it runs, the garbage collector ignores the objects that the host had
    when the engine was up (`gc.freeze`).
    """

    def __init__(self, model: str, engine_args: Mapping[str, Any] | None = None) -> None:
        self._model = model
        self._engine_args = dict(engine_args or {})
        self._tool_parser: str | None = self._engine_args.get("tool_call_parser")
        self._parsers: Parsers | None = None
        self._adapters = Adapters(self._engine_args.get(ARGUMENT, {}))
        self._llm: AsyncLLM | None = None
        self._guard: ProcessGuard | None = None
        self._info: EngineInfo | None = None
        self._grammars: Grammars | None = None
        self._encoder: PromptEncoder | None = None
        self._open: set[str] = set()
        self._constrained = Constrained(self._open)
        self._steps = CoreSteps()
        self._paths = PathCounts()
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
        self._info = await anyio.to_thread.run_sync(self._describe, llm)
        names = self._tool_parser, llm.vllm_config.structured_outputs_config.reasoning_parser
        self._parsers = await anyio.to_thread.run_sync(Parsers, *names, llm.model_config, llm.get_tokenizer())
        await self._adapters.load(llm)
        await anyio.to_thread.run_sync(set_heap_aside)
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
            # In a thread: the call blocks until the engine process has loaded the model, and
            # /health must answer in that time.
            llm = await start_in_thread(partial(quiet()(self._build), client, guard), end=self.kill, discard=discard)
            try:
                structured = llm.vllm_config.structured_outputs_config
                known = partial(vocabulary, llm.vllm_config, llm.get_tokenizer())
                grammars = Grammars(known, free_space=not structured.disable_any_whitespace)
                # Another backend is the operator's choice, and it has its own bounds.
                self._grammars = grammars if structured.backend == "xgrammar" else None
                encoder = self._encoder = PromptEncoder(llm.renderer) if can_encode(llm.renderer) else None
                try:
                    yield llm
                finally:
                    grammars.close()
                    if encoder is not None:
                        encoder.close()
            finally:
                if self._llm is None:
                    # The engine was never up, so an orderly end is not worth the wait.
                    self.kill()
                # References to the engine would keep its descriptors and threads.
                self._llm = self._grammars = self._encoder = None
                with anyio.CancelScope(shield=True):
                    await end(llm)
                del llm
        finally:
            self._guard = None
            with anyio.CancelScope(shield=True):
                if guard is not None:
                    await anyio.to_thread.run_sync(guard.close)
                await anyio.to_thread.run_sync(release)

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
        # vLLM's defaults depend on the usage context: on an H200 a step holds 8192 tokens for its
        # API server and 2048 for an unknown embedder. With 2048, 128 streams of a 1.5B model left
        # requests waiting for prefill (docs/benchmarks.md).
        context, loggers = UsageContext.OPENAI_API_SERVER, make_stat_loggers(self._record)
        install()
        with start_errors(self._model, guard):
            if client is not None:
                arguments = client.arguments()
                return AsyncLLM.from_vllm_config(usage_context=context, stat_loggers=loggers, disable_log_stats=True, **arguments)
            args = build_engine_args(resolve(self._model, check), self._engine_args)
            check()
            with interrupts_blocked(), guard.launching(*PROCESS_NAMES) if guard else nullcontext():
                return AsyncLLM.from_engine_args(args, usage_context=context, stat_loggers=loggers)

    def _describe(self, llm: "AsyncLLM") -> EngineInfo:
        from vllm.platforms import current_platform

        config = llm.vllm_config
        # The cores to which this client sends requests. With a load balancer outside vLLM there are
        # others.
        cores, cache = len(llm.engine_core.engine_ranks_managed), config.cache_config.kv_cache_size_tokens
        tokenizer = llm.get_tokenizer()
        # The longest text of one token bounds the length of text that can fit the context.
        self._longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)
        self._defaults = llm.model_config.get_diff_sampling_param()
        return EngineInfo(
            name="vllm",
            version=version(),
            model=self._model,
            device=current_platform.get_device_name() or current_platform.device_type,
            max_model_len=llm.model_config.max_model_len,
            vocab_size=llm.model_config.get_vocab_size(),
            # vLLM reports these figures for each core.
            max_num_seqs=config.scheduler_config.max_num_seqs * cores,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens * cores,
            kv_cache_tokens=None if cache is None else cache * cores,
            has_chat_template=getattr(tokenizer, "chat_template", None) is not None,
            adapters=self._adapters.names,
        )

    # Prompts

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        llm = self.running_llm
        check_version_for(request.sampling)
        constraint = await self._constraint(request)
        if isinstance(request.prompt, tuple):
            return EnginePrompt(token_ids=request.prompt, constraint=constraint)
        try:
            if request.prompt is not None:
                return attrs.evolve(await self._render_text(llm, request.prompt), constraint=constraint)
            return attrs.evolve(await self._render_chat(llm, request), constraint=constraint)
        except (InvalidRequest, EngineDead):
            raise
        except Exception as error:
            # Templates are the model's own programs: any error in one is about the conversation.
            raise InvalidRequest(f"the prompt cannot be rendered: {brief(error)}", request.prompt_field) from error

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

    async def _render_text(self, llm: "AsyncLLM", text: str) -> EnginePrompt:
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        self._refuse_endless(len(text), "prompt")
        if self._encoder is not None:
            token_ids, _ = await self._encoder.encode(PromptJob(text, self._unbounded("cmpl")))
            return EnginePrompt(token_ids=tuple(token_ids), text=text)
        renderer = llm.renderer
        (rendered,) = await renderer.render_cmpl_async([parse_model_prompt(llm.model_config, text)], self._unbounded("cmpl"))
        return EnginePrompt(token_ids=tuple(rendered["prompt_token_ids"]), text=text)

    async def _render_chat(self, llm: "AsyncLLM", request: GenerationRequest) -> EnginePrompt:
        from vllm.renderers.params import ChatParams

        # vLLM replaces the arguments of tool calls by dictionaries, in place. It does not change
        # anything else.
        messages = [copy.deepcopy(dict(one)) if one.get("tool_calls") else dict(one) for one in request.messages or ()]
        tools = template_tools(request.tools) if request.tools is not None and request.tools.choice != "none" else None

        if not self.info.has_chat_template:
            raise InvalidRequest("this model has no chat template; use prompt instead of messages", "messages")
        self._refuse_endless(sum(len(message.get("content") or "") for message in messages), "messages")
        kwargs = {"add_generation_prompt": True, **request.template_kwargs, "tools": tools}
        if self._encoder is not None:
            # As text, so that the tokenizer encodes it together with other prompts.
            chat = ChatParams(chat_template_kwargs=kwargs | {"tokenize": False})
            _, prompt = await llm.renderer.render_messages_async(messages, chat)
            token_ids, words = await self._encoder.encode(PromptJob(prompt["prompt"], self._unbounded("chat")))
            return EnginePrompt(token_ids=tuple(token_ids), text=words)
        _, (rendered,) = await llm.renderer.render_chat_async([messages], ChatParams(chat_template_kwargs=kwargs), self._unbounded("chat"))
        return EnginePrompt(token_ids=tuple(rendered["prompt_token_ids"]), text=rendered.get("prompt"))

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> OutputParser | None:
        return None if self._parsers is None else self._parsers.reader(request, prompt)

    def _unbounded(self, kind: str) -> Any:
        """Return vLLM's tokenisation parameters without a length check: the manager does that."""
        renderer = self.running_llm.renderer
        params = renderer.default_chat_tok_params if kind == "chat" else renderer.default_cmpl_tok_params
        return dataclasses.replace(params, max_total_tokens=None)

    def _refuse_endless(self, characters: int, field: str) -> None:
        """Refuse a text that cannot fit the context in any tokenisation, before any work on it."""
        limit = self.info.max_model_len
        if characters > limit * self._longest_token:
            raise PromptTooLong(characters // self._longest_token, limit, field)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        if any(not 0 <= token < self.info.vocab_size for token in token_ids):
            raise InvalidRequest(f"a token id is outside the vocabulary of {self.info.vocab_size}", "tokens")
        tokenizer = self.running_llm.get_tokenizer()
        return str(await anyio.to_thread.run_sync(tokenizer.decode, list(token_ids)))

    # Requests

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        from vllm.inputs import tokens_input

        llm = self.running_llm
        receiver = Receiver(request_id, sink, sampling, self._open, llm.get_tokenizer().decode, self._drop)
        self._open.add(request_id)
        if (constraint := prompt.constraint or sampling.structured_outputs) is not None:
            self._constrained.add(request_id, constraint, receiver)
        try:
            inputs = tokens_input(list(prompt.token_ids), prompt=prompt.text, cache_salt=prompt.cache_salt)
            params = sampling_params(sampling, constraint, self._defaults, llm.get_tokenizer())
            traces = llm.vllm_config.observability_config.otlp_traces_endpoint is not None
            headers = dict(prompt.trace_headers) if traces and prompt.trace_headers else None
            adapter = self._adapters.request(prompt.adapter)
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
        await self.running_llm.engine_core.abort_requests_async(request_ids)

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
            raise EngineDead("vLLM's engine is not running")

    def _record(self, core: int, scheduler_stats: Any, iteration_stats: Any) -> None:
        self._steps.record(core, scheduler_stats, iteration_stats, now=time.monotonic(), more=bool(self._open))
        self._stepped()

    @property
    def running_llm(self) -> "AsyncLLM":
        """The AsyncLLM, for what this adapter does not offer. Raises EngineDead if it is down."""
        if self._llm is None:
            raise EngineDead("vLLM's engine is not running")
        return self._llm
