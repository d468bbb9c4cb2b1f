"""vLLM's scheduler with a maximum of tokens in a step that the host sets, in the engine's own process.

The maximum only holds while a request is answered: beside prompts alone, a large step delays no
token. Written against vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

import logging
import mmap
import os
from functools import wraps
from typing import Any

from llmserve.engines.vllm.scheduling.step_limit import SIZE, VARIABLE, least_of_core

logger = logging.getLogger(__name__)


def install() -> None:
    """Make this process obey the maximum, if its host has given it one.

    This replaces vLLM's choice of a class instead of naming one in vLLM's configuration. Such a
    name hides which class vLLM would choose, and vLLM warns of it.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    from vllm.config.scheduler import SchedulerConfig

    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        logger.warning("steps keep their size, because %s cannot be read: %s", path, error)
        return
    choose = SchedulerConfig.get_scheduler_cls

    @wraps(choose)
    def choose_limited(self: Any) -> Any:
        base = choose(self)
        # A class that the operator or an unusual model needs stays.
        return base if self.scheduler_cls is not None else limited(base, memory)

    SchedulerConfig.get_scheduler_cls = choose_limited


def limited(base: Any, memory: mmap.mmap) -> Any:
    """Return a subclass of one of vLLM's schedulers that reads its maximum from the memory.

    vLLM's schedulers read `max_num_scheduled_tokens` in each step.
    """

    class LimitedScheduler(base):  # type: ignore[misc] # it is known only at run time
        max_num_scheduled_tokens: int

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(vllm_config, *args, **kwargs)
            self._most = self.max_num_scheduled_tokens
            self._least = least_of_core(vllm_config) or self._most

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            # The host's number is 0 as long as it has not set one.
            tokens = int.from_bytes(memory[:], "little")
            limits = tokens and any(one.num_computed_tokens >= one.num_prompt_tokens for one in self.running)
            self.max_num_scheduled_tokens = min(self._most, max(tokens, self._least)) if limits else self._most
            return super().schedule(*args, **kwargs)

    return LimitedScheduler
