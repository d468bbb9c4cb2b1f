"""A maximum of tokens in a step that changes while vLLM's engine is up.

vLLM takes `max_num_batched_tokens` when its engine is made, and its scheduler reads a copy of it in
each step. In the engine's own process, `limited_scheduler` lowers that copy to a number in memory
that the host shares. A message would have to pass through vLLM's core, which has no way to its
scheduler. Written against vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

import mmap
import os
import threading
from collections.abc import Mapping
from typing import Any

# The variable with the path of the memory. Only the engine's processes have it.
VARIABLE = "LLMSERVE_STEP_LIMIT"
SIZE = 8
# The operator's own choice of the maximum, or of the scheduler.
CHOICES = ("max_num_batched_tokens", "max_num_scheduled_tokens", "scheduler_cls")


class StepLimit:
    """The maximum of one engine, which may consist of several cores. Does nothing before `allow()`."""

    def __init__(self) -> None:
        self._possible = False
        self._cores = 1
        self._tokens = 0
        self._descriptor: int | None = None
        self._memory: mmap.mmap | None = None
        # A thread closes the memory while the event loop may write to it.
        self._lock = threading.Lock()

    def allow(self, engine_args: Mapping[str, Any]) -> None:
        """Let the next start prepare for a maximum, unless the operator's arguments have one of `CHOICES`."""
        self._possible = _is_readable() and not any(engine_args.get(name) is not None for name in CHOICES)

    def variables(self) -> dict[str, str]:
        """Return the environment variable of the engine's processes. They may read the memory until `close()`."""
        if not self._possible:
            return {}
        if self._descriptor is None:
            # A path of this process, so that a kill of the host leaves no file behind.
            self._descriptor = os.memfd_create("llmserve-step-limit")
            os.ftruncate(self._descriptor, SIZE)
            self._memory = mmap.mmap(self._descriptor, SIZE)
            self._write()
        return {VARIABLE: f"/proc/{os.getpid()}/fd/{self._descriptor}"}

    def least(self, config: Any) -> int | None:
        """Return the smallest maximum of an engine with this `VllmConfig`; None if it has only its own."""
        least = least_of_core(config) if self._possible else None
        self._cores = int(config.parallel_config.data_parallel_size)
        return None if least is None else least * self._cores

    def set(self, tokens: int) -> None:
        """Let the engine compute at most `tokens` in a step, from the next one on."""
        if tokens != self._tokens:
            self._tokens = tokens
            self._write()

    def _write(self) -> None:
        with self._lock:
            if self._memory is not None:
                self._memory[:] = (self._tokens // self._cores).to_bytes(SIZE, "little")

    def close(self) -> None:
        """Close the memory. The next `variables()` opens it again, with the same maximum."""
        with self._lock:
            if self._memory is not None and self._descriptor is not None:
                self._memory.close()
                os.close(self._descriptor)
                self._memory = self._descriptor = None


class LimitedSteps:
    """The methods of `llmserve.engine.LimitsSteps` for an engine with a `StepLimit`."""

    _engine_args: Mapping[str, Any]
    _limit: StepLimit

    def allow_step_limit(self) -> None:
        self._limit.allow(self._engine_args)

    def limit_step(self, tokens: int) -> None:
        self._limit.set(tokens)


def _is_readable() -> bool:
    """Whether another process of this user can read memory of this one by its path in /proc.

    The system gives the folder of a process that must not be inspected to root.
    """
    return hasattr(os, "memfd_create") and os.stat("/proc/self").st_uid == os.geteuid()


def least_of_core(config: Any) -> int | None:
    """Return the smallest maximum with which a core's requests all go on; None if it has only its own.

    Without chunks, a prompt or an image longer than the maximum would never start. Schedulers of
    other kinds, and cores on other hosts, are left alone.
    """
    scheduler, parallel, speculation = config.scheduler_config, config.parallel_config, config.speculative_config
    is_here = parallel.data_parallel_backend == "mp" and parallel.data_parallel_size_local == parallel.data_parallel_size
    if scheduler.scheduler_cls is not None or not is_here or getattr(parallel, "nnodes", 1) > 1:
        return None
    if not scheduler.enable_chunked_prefill or scheduler.disable_chunked_mm_input:
        return None
    drafts = 0 if speculation is None else int(speculation.num_speculative_tokens or 0)
    # A token for each sequence, and as many as it drafts.
    least = int(scheduler.max_num_seqs) * (1 + drafts)
    # In this mode a prompt advances by whole blocks, beside the answers.
    is_aligned = getattr(config.cache_config, "mamba_cache_mode", None) == "align"
    return least + int(config.cache_config.block_size) if is_aligned else least
