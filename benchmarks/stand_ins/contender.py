"""What a contender is made from, and what some contenders share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

from llmserve.admission import AdmissionController, EngineSample, Refusal, Refused, Ticket
from llmserve.admission.regression import LinearFit
from llmserve.config import SLO

# A longer queue than any policy reaches.
UNBOUNDED = 1 << 30
# The value of a figure that a policy decides by, read from its controller; None while unknown.
Signals: TypeAlias = Mapping[str, Callable[..., float | None]]


@attrs.frozen(kw_only=True)
class Known:
    """What an operator measures before tuning: the load just below saturation, and the lengths.

    Attributes:
        capacity: Requests per second.
        latency: Mean seconds of a whole request at that load.
        prompt, answer: Mean and standard deviation of the tokens.
    """

    capacity: float
    latency: float
    prompt: tuple[float, float]
    answer: tuple[float, float]


@attrs.frozen(kw_only=True)
class Setup:
    """What a policy may know: the SLO, the engine's size and, if it was measured, the workload."""

    slo: SLO
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    min_step_tokens: int | None = None
    kv_tokens: int | None = None
    known: Known | None = None
    seed: int = 0


class Contender(Protocol):
    """A module of `contenders`. Its name there is the policy's name.

    Attributes:
        SOURCE, URL: Where the policy is described; an empty address for this project's documentation.
        HEADLINE: What its authors report.
        SIGNALS: What it decides by.
    """

    SOURCE: str
    URL: str
    HEADLINE: str
    SIGNALS: Signals

    def make(self, setup: Setup, *arguments: str) -> AdmissionController:
        """Return a new controller."""

    def variants(self, setup: Setup) -> Sequence[str]:
        """Return the arguments, separated by colons, among which the best is chosen in hindsight."""


class Refusing(AdmissionController):
    """A controller that refuses some tickets before its policy sees them."""

    def refuse(self, ticket: Ticket, now: float) -> Refused:
        """Refuse a new ticket."""
        return self._refuse(ticket, Refused(Refusal.QUEUE_FULL, 1.0), now)


class Profile:
    """Step times by the number of running sequences, and what prompts add to them.

    The policies that predict measure this before they start; here they learn it while they run.
    """

    def __init__(self) -> None:
        self.decode, self._prompts = LinearFit(), LinearFit()
        # The share of the time in which prompts are computed.
        self.prompts = 0.0
        self._last: EngineSample | None = None

    def record(self, sample: EngineSample, pending: int) -> None:
        """Learn from the engine's figures; `pending` prompts have no first token."""
        last, self._last = self._last, sample
        if last is None or sample.steps <= last.steps:
            return
        steps, seconds = sample.steps - last.steps, sample.busy_seconds - last.busy_seconds
        tokens = sample.prompt_tokens - last.prompt_tokens
        extra = max(0.0, seconds - steps * self.decode.at(sample.running))
        self.prompts += ((extra / seconds if tokens and seconds else 0.0) - self.prompts) / 100
        if tokens:
            self._prompts.add(tokens, seconds)
        elif not pending:
            self.decode.add(sample.running, seconds / steps)

    def step(self, running: float) -> float:
        """Return the mean seconds of a step with this number of sequences, and the prompts that come with them."""
        return self.decode.at(running) / max(0.1, 1 - self.prompts)

    def compute(self, prompt_tokens: float) -> float:
        """Return the seconds that the engine takes for prompts, beside the answers that it decodes."""
        return prompt_tokens * self._prompts.ratio
