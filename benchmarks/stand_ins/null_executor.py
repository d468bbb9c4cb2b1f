"""The null core: vLLM's own engine core process, with its scheduler, ZeroMQ and msgpack, over a model that computes nothing.

vLLM imports `NullExecutor` by its name, as its `distributed_executor_backend`; no worker is started, no weights are loaded, and no memory
is taken for the cache. The core sends what a real core sends, except that logprobs are left out and grammars are ignored.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from benchmarks.stand_ins.null_model import NullModel

# Seconds that a step takes; the environment reaches the engine core process, which is started by vLLM.
PACE = "NULL_EXECUTOR_PACE"
# The scheduler makes a Python object for each block: 2 million tokens in blocks of 16, what an H100 holds for a model of 1.5B.
MAX_BLOCKS = 2**17


class _Step(Future[Any]):
    """A result that is there when its step is over."""

    def __init__(self, value: ModelRunnerOutput | None, over_at: float) -> None:
        super().__init__()
        self._over_at = over_at
        self.set_result(value)

    def result(self, timeout: float | None = None) -> Any:
        left = self._over_at - time.monotonic()
        if left > 0:
            time.sleep(left)
        return super().result(timeout)


class NullExecutor(Executor):  # type: ignore[misc]
    """One token for each scheduled request, at once or at a pace."""

    supported_tasks = ("generate",)

    def _init_executor(self) -> None:
        self._model = NullModel(float(os.environ.get(PACE, "0")))
        self._over_at = 0.0
        self._output = EMPTY_MODEL_RUNNER_OUTPUT
        # One layer with the smallest cache: the scheduler counts blocks, whatever they hold.
        self._spec = FullAttentionSpec(block_size=self.cache_config.block_size or 16, num_kv_heads=1, head_size=8, dtype=torch.float16)

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        return [{"layer": self._spec}]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["LBNHC"]]

    def determine_available_memory(self) -> list[int]:
        """Room for as many whole contexts as run at once, within MAX_BLOCKS, and for one context in any case."""
        context = -(-self.model_config.max_model_len // self._spec.block_size)
        blocks = max(context, min(MAX_BLOCKS, context * self.scheduler_config.max_num_seqs))
        # One block is vLLM's own: it stands for none.
        return [(blocks + 1) * self._spec.page_size_bytes]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """There is no cache to allocate."""

    def compile_or_warm_up_model(self) -> None:
        """There is nothing to compile."""

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:  # noqa: FBT001 - vLLM's signature
        """None, as from vLLM's own model runners: the tokens follow from `sample_tokens`."""
        request_ids, tokens = self._model.step(scheduler_output)
        if not request_ids:
            return self._answer(EMPTY_MODEL_RUNNER_OUTPUT, 0.0, non_block=non_block)
        self._over_at = self._model.begin()
        indices = {request_id: index for index, request_id in enumerate(request_ids)}
        self._output = ModelRunnerOutput(req_ids=request_ids, req_id_to_index=indices, sampled_token_ids=tokens)
        return self._answer(None, 0.0, non_block=non_block)

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool = False) -> Any:  # noqa: FBT001
        return self._answer(self._output, self._over_at, non_block=non_block)

    def _answer(self, value: ModelRunnerOutput | None, over_at: float, *, non_block: bool) -> Any:
        step = _Step(value, over_at)
        return step if non_block else step.result()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,  # noqa: FBT001
    ) -> Any:
        """Nothing that vLLM asks of its workers besides (a cache to reset, a profiler to start) changes what this one answers."""
        if not non_block:
            return [None]
        done: Future[list[None]] = Future()
        done.set_result([None])
        return done

    def check_health(self) -> None:
        """Always well."""
