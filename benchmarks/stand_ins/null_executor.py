"""The null core: vLLM's engine core process over a model without computation.

vLLM imports `NullExecutor` by name, as its `distributed_executor_backend`. It starts no worker,
loads no weights and takes no memory for the cache. The core has vLLM's scheduler, ZeroMQ and
msgpack, and sends what a real core sends, except that logprobs are left out and grammars are
ignored.
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

from benchmarks.stand_ins.null_model import paced

# Environment variable with the seconds per step, and optionally for each sequence and each token in
# it ("0.004:2e-5:1e-5"); it reaches the engine core process that vLLM starts.
PACE = "NULL_EXECUTOR_PACE"
# The scheduler makes a Python object per block: 2 million tokens in blocks of 16, what an H100
# holds for a model of 1.5B.
MAX_BLOCKS = 2**17


class _Step(Future[Any]):
    """A result that is available when its step is over."""

    def __init__(self, value: ModelRunnerOutput | None, over_at: float) -> None:
        super().__init__()
        self._over_at = over_at
        self.set_result(value)

    def result(self, timeout: float | None = None) -> Any:
        left = self._over_at - time.monotonic()
        if left > 0:
            time.sleep(left)
        return super().result(timeout)


class NullExecutor(Executor):  # type: ignore[misc]  # vLLM is not installed for type checks
    """Returns one token for each scheduled request, immediately or at a pace."""

    supported_tasks = ("generate",)

    def _init_executor(self) -> None:
        self._model = paced(os.environ.get(PACE, "0"))
        self._over_at = 0.0
        self._output = EMPTY_MODEL_RUNNER_OUTPUT
        # One layer with the smallest cache, because the scheduler counts blocks regardless of their
        # content.
        self._spec = FullAttentionSpec(block_size=self.cache_config.block_size or 16, num_kv_heads=1, head_size=8, dtype=torch.float16)

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        return [{"layer": self._spec}]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["LBNHC"]]

    def determine_available_memory(self) -> list[int]:
        """Return room for all running contexts up to MAX_BLOCKS, but for at least one context."""
        context = -(-self.model_config.max_model_len // self._spec.block_size)
        blocks = max(context, min(MAX_BLOCKS, context * self.scheduler_config.max_num_seqs))
        # vLLM reserves one block as the null block.
        return [(blocks + 1) * self._spec.page_size_bytes]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """Do nothing: there is no cache to allocate."""

    def compile_or_warm_up_model(self) -> None:
        """Do nothing: there is nothing to compile."""

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:  # noqa: FBT001 - vLLM's signature
        """Return None like vLLM's model runners, because `sample_tokens` returns the tokens."""
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
        non_block: bool = False,  # noqa: FBT001 - vLLM's signature
    ) -> Any:
        """Ignore vLLM's other calls to its workers (reset a cache, start a profiler)."""
        if not non_block:
            return [None]
        done: Future[list[None]] = Future()
        done.set_result([None])
        return done

    def check_health(self) -> None:
        """Do nothing: the executor is always healthy."""
