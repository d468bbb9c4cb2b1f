"""LateGate and the policies it is compared with, by name, for the simulation and for real engines.

- `lategate`, and every other name in `POLICIES` but `fixed`, with its default settings.
- `none`, `gradient2`.
- `fixed:N`: at most N requests in the engine, each waiting at most a third of the TTFT;
  `fixed:N:S`: S seconds.
- `vllm:R` or `vllm:R:T`: vLLM's `--max-num-queued-reqs` and `--max-num-queued-tokens`.
- `thin:R`: random refusals, so that R requests per second are admitted.
"""

import math
import random
from collections.abc import Callable

import attrs

from llmserve.admission import (
    POLICIES,
    AdmissionController,
    FixedLimit,
    Refusal,
    Refused,
    Ticket,
    Unlimited,
    build_admission,
)  # fmt: skip
from llmserve.config import SLO, AdmissionConfig
from llmserve.errors import ConfigurationError

# A longer queue than any policy reaches.
UNBOUNDED = 1 << 30


@attrs.frozen(kw_only=True)
class Setup:
    """What a policy may know: the SLO and the engine's size."""

    slo: SLO
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    seed: int = 0


@attrs.define
class Gradient2(FixedLimit):
    """Netflix's concurrency limit: it follows the ratio of long-term to recent latency.

    The parameters are those of its authors' library: smoothing 0.2, tolerance 1.5, a long window of
    600, a queue of 4.
    """

    limit: int = 20
    name: str = "gradient2"
    most: int = 256
    _long: float = attrs.field(default=0.0, init=False)
    _estimate: float = attrs.field(default=20.0, init=False)

    def left(self, ticket: Ticket, now: float) -> float | None:
        running = self._running
        if ticket.complete and ticket.granted is not None:
            took = now - ticket.granted
            self._long += (took - self._long) / 600 if self._long else took
            if self._long / took > 2:
                self._long *= 0.95
            if running >= self._estimate / 2:
                gradient = min(1.0, max(0.5, 1.5 * self._long / took))
                self._estimate = self._estimate * 0.8 + 0.2 * (self._estimate * gradient + 4)
                self._estimate = min(max(self._estimate, 1.0), float(self.most))
                self.limit = int(self._estimate)
        return super().left(ticket, now)


class VLLMFlags(AdmissionController):
    """Limits of vLLM's flags on requests and prompt tokens without a first token; 503 beyond."""

    def __init__(self, requests: int, tokens: float) -> None:
        super().__init__(Unlimited())
        self._most = requests, tokens
        self._queued: dict[Ticket, int] = {}

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        requests, tokens = self._most
        if len(self._queued) >= requests or sum(self._queued.values()) + ticket.prompt_tokens > tokens:
            return self._refuse(ticket, Refused(Refusal.QUEUE_FULL, 1.0), now)
        self._queued[ticket] = ticket.prompt_tokens
        return super().offer(ticket, now)

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        self._queued.pop(ticket, None)
        return super().first_token(ticket, now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        self._queued.pop(ticket, None)
        return super().leave(ticket, now)


class Thinning(AdmissionController):
    """Admits `rate` requests per second at random and lets all of them start."""

    def __init__(self, rate: float, seed: int) -> None:
        super().__init__(Unlimited())
        self._rate_taken = rate
        self._random = random.Random(f"thinning {seed}")
        self._arrivals = 0.0
        self._at = 0.0

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        # The arrival rate over about ten seconds.
        self._arrivals = self._arrivals * math.exp((self._at - now) / 10) + 1
        self._at = now
        offered = self._arrivals / max(0.1, 10 * (1 - math.exp(-now / 10)))
        if self._random.random() > self._rate_taken / offered:
            return self._refuse(ticket, Refused(Refusal.QUEUE_FULL, 1.0), now)
        return super().offer(ticket, now)


def _fixed(setup: Setup, limit: str, seconds: str | None = None) -> AdmissionController:
    wait = _third(setup) if seconds is None else float(seconds)
    return AdmissionController(FixedLimit(limit=int(limit), max_wait=wait), max_waiting=UNBOUNDED)


_KINDS: dict[str, Callable[..., AdmissionController]] = {
    "none": lambda setup: AdmissionController(Unlimited()),
    "fixed": _fixed,
    "vllm": lambda setup, requests, tokens="inf": VLLMFlags(int(requests), float(tokens)),
    "gradient2": lambda setup: AdmissionController(Gradient2(max_wait=_third(setup), most=setup.max_num_seqs), max_waiting=UNBOUNDED),
    "thin": lambda setup, rate: Thinning(float(rate), setup.seed),
}


def _third(setup: Setup) -> float:
    return setup.slo.ttft / 3 if setup.slo.ttft is not None else math.inf


def make(name: str, setup: Setup) -> AdmissionController:
    """Make a new controller by name. Raises ConfigurationError for an unknown name."""
    if name in POLICIES and name not in _KINDS:
        return build_admission(AdmissionConfig(policy=name), setup.slo, setup.max_num_seqs, setup.max_num_batched_tokens)
    kind, *arguments = name.split(":")
    try:
        return _KINDS[kind](setup, *arguments)
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"unknown admission policy {name!r}; choose from {', '.join(dict.fromkeys((*POLICIES, *_KINDS)))} (fixed:64, vllm:256, thin:12)"
        ) from None
