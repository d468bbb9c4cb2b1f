"""`vllm:R` or `vllm:R:T`: vLLM's `--max-num-queued-reqs` and `--max-num-queued-tokens`.

They count requests, and prompt tokens, that have no first token, and refuse with 503 beyond.
"""

from collections.abc import Sequence

from benchmarks.stand_ins.contender import Refusing, Setup
from llmserve.admission import AdmissionController, Refused, Ticket, Unlimited

SOURCE, URL = "vLLM's flags for its queue, tuned in hindsight", "https://github.com/vllm-project/vllm/pull/49445"
HEADLINE = "none; refuses with 503 beyond a limit that the operator sets"
SIGNALS = {"queued requests": lambda one: len(one.queued), "queued prompt tokens": lambda one: sum(one.queued.values())}
QUEUED, QUEUED_TOKENS = (8, 32, 128), ("inf", "8000")


class VLLMFlags(Refusing):
    """Limits of vLLM's flags on requests and prompt tokens without a first token; 503 beyond."""

    def __init__(self, requests: int, tokens: float) -> None:
        super().__init__(Unlimited())
        self._most = requests, tokens
        self.queued: dict[Ticket, int] = {}

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        requests, tokens = self._most
        if len(self.queued) >= requests or sum(self.queued.values()) + ticket.prompt_tokens > tokens:
            return self.refuse(ticket, now)
        self.queued[ticket] = ticket.prompt_tokens
        return super().offer(ticket, now)

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        self.queued.pop(ticket, None)
        return super().first_token(ticket, now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        self.queued.pop(ticket, None)
        return super().leave(ticket, now)


def make(setup: Setup, requests: str, tokens: str = "inf") -> AdmissionController:
    return VLLMFlags(int(requests), float(tokens))


def variants(setup: Setup) -> Sequence[str]:
    return [f"{requests}:{tokens}" for requests in QUEUED for tokens in QUEUED_TOKENS]
