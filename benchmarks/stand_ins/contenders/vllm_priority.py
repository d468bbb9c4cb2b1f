"""`vllm_priority:R`: vLLM's priority scheduler, which starts the smallest priority first, and its flag for R queued requests.

The priority is the length of the prompt, in powers of four, because a shorter prompt holds up the
others for less time.
"""

import math
from collections.abc import Sequence

from benchmarks.stand_ins.contender import Setup
from benchmarks.stand_ins.contenders import vllm
from llmserve.admission import AdmissionController, Refused, Ticket

SOURCE, URL = "vLLM's priority scheduler and its flag, tuned in hindsight", "https://docs.vllm.ai/en/latest/api/vllm/config/scheduler"
HEADLINE = "none; a smaller number is scheduled earlier"
SIGNALS = {**vllm.SIGNALS, "priority": lambda one: one.lowest}


class ByLength(vllm.VLLMFlags):
    """The flags, with a priority for each request; `lowest` is that of the last one."""

    lowest = 0

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        ticket.priority = self.lowest = int(math.log(max(ticket.prompt_tokens, 1), 4))
        return super().offer(ticket, now)


def make(setup: Setup, requests: str) -> AdmissionController:
    return ByLength(int(requests), math.inf)


def variants(setup: Setup) -> Sequence[str]:
    return [str(requests) for requests in vllm.QUEUED]
