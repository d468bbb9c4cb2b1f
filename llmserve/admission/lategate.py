"""LateGate keeps requests in the queue and lets them into the engine just in time.

In the queue they can be reordered and dropped at no cost. No number here is tuned to a model, a
machine or a mix of prompts. The policy learns from the engine's figures and from tickets that
leave: the times of steps and prompts, the lengths of answers and the queue's speed.
"""

import math
from bisect import bisect
from collections import deque
from weakref import WeakSet

import attrs

from llmserve.admission.kv_forecast import CacheForecast
from llmserve.admission.length_estimates import LOOK, Seen
from llmserve.admission.prediction import EngineSample, PolicyFigures, QueueState, Terms
from llmserve.admission.refusals import Refusal
from llmserve.admission.regression import FitWithError, LinearFit, Recent
from llmserve.admission.safety_margins import ErrorBudget, Reserve, Spread, StandingQueue
from llmserve.admission.stalls import Lot, StallBudget, StepModel, StepSize
from llmserve.admission.ticket import Ticket
from llmserve.config import SLO

# Cost of a generated token relative to a prompt token: within a factor of two of OpenAI's price
# lists and VTC's evaluation.
OUTPUT_WEIGHT = 2.0
# In TTFT targets: up to this backlog demand counts as a burst, and a ticket with leave to be late
# may be this late.
LATE = 2.0
# For each such number of sequences, one more may wait in the engine.
SPARE = 32
# Number of standard deviations of the prompts' time that is kept free before the TTFT target.
DEVIATIONS = 2.5


@attrs.define
class _Running:
    """A ticket in the engine.

    Attributes:
        fresh: Prompt tokens that the engine must compute.
        ahead: The same of all prompts in the engine before its first token, including its own.
        lot: The prompts that started together with its own.
        timed: The tokens of its prompt, cached ones included, that are computed in timed steps.
        first_token, steps: When the first token came, and the engine's step count then.
    """

    fresh: int
    ahead: int
    lot: Lot
    timed: int
    first_token: float | None = None
    steps: float = 0.0


class LateGate:
    """A policy that predicts. It needs an SLO with at least one bound.

    Args:
        slo: The targets in seconds.
        max_num_seqs: Maximum number of sequences in the engine's batch.
        max_num_batched_tokens: Maximum number of tokens in one of its steps, None if unknown.
        max_wait: Longest wait in seconds if the SLO has no TTFT target.
        min_step_tokens: Smallest such maximum that the engine accepts while it is up, None if none.
    """

    name = "lategate"
    sized = "kv", "stall", "tpot"

    def __init__(
        self,
        slo: SLO,
        max_num_seqs: int,
        max_num_batched_tokens: int | None,
        max_wait: float = 30.0,
        min_step_tokens: int | None = None,
    ) -> None:
        self.slo = slo
        self.limit = max_num_seqs
        self._departures: deque[float] = deque(maxlen=max_num_seqs // SPARE)
        self.max_wait = max_wait
        self._live: dict[Ticket, _Running] = {}
        # Tickets that may be served late: a ticket gets this only once.
        self._late: WeakSet[Ticket] = WeakSet()
        self._pending = 0
        # The value of `_pending` at the last report of a step.
        self._were_pending = 0
        # Mean of `_pending` at a start.
        self._usually_pending = 0.0
        self._sample: EngineSample | None = None
        self._recent = Recent(seconds=_memory(slo))
        self._step = LinearFit()
        self._prefill = FitWithError()
        self.step_size = StepSize(self._step, max_num_batched_tokens or 0, max_num_seqs, min_step_tokens)
        self.prompts = Seen()
        self.spread = Spread()
        self.cache = CacheForecast()
        self.reserve = Reserve()
        self.budget = ErrorBudget()
        self.stalls = StallBudget()
        self.queue = StandingQueue()
        # Demand over service rate, at the last arrival.
        self._pressure = 0.0

    def adopt(self, other: "LateGate", now: float) -> None:
        """Take over the SLO of `other`; running tickets, and what this policy has learnt, stay."""
        if self.slo.tpot != other.slo.tpot:
            # Running tickets were admitted under another bound, and do not show how requests differ.
            self.spread.ignore(now)
            self.step_size.tokens = self.step_size.most
        self.slo, self.max_wait = other.slo, other.max_wait
        self._recent.seconds = _memory(other.slo)

    @property
    def step_tokens(self) -> int | None:
        """The maximum number of tokens in a step that the engine should use; None if it accepts none."""
        return self.step_size.wanted

    # Decisions

    def holds(self, ticket: Ticket, now: float) -> str | None:
        constraint = self._constraint(ticket, now)
        if constraint is not None:
            self.queue.held(constraint)
        return constraint

    def _constraint(self, ticket: Ticket, now: float) -> str | None:
        running = len(self._live)
        if not running:
            return None
        above = running + ticket.room.tickets - self.limit
        if above >= 0 and above >= self._spare(now):
            return "sequences"
        # A step's worth of prompts is on its way, and more would only wait in the engine.
        if self._pending > self.step_size.tokens:
            return "prefill"
        if self._sample and self.cache.lacks_room(ticket, self._size(ticket), self._live, self._sample, pending=self._pending > 0):
            return "kv"
        model = self._model()
        if ticket.room.tickets and model is not None and self._obstructs(ticket, model):
            return "prefill"
        if model is not None and self.stalls.exceeded(self._fresh(ticket) + ticket.room.prompt_tokens, model):
            self.spread.bound(now)
            return "stall"
        if self._step_with(ticket) > self._target:
            self.spread.bound(now)
            return "tpot"
        return None

    def terms(self, ticket: Ticket, queue: QueueState, now: float) -> Terms:
        self.prompts.add(ticket.prompt_tokens)
        self._pressure = queue.pressure
        first = self._first_token_within(ticket.prompt_tokens - ticket.cached_tokens)
        return Terms(
            ticket.prompt_tokens + OUTPUT_WEIGHT * ticket.expected_tokens,
            self._expires(ticket, queue, now),
            first + ticket.expected_tokens * (self._recent.step or 0.0),
            Refusal.PROMPT_TOO_SLOW if self._is_too_slow(ticket, first) else None,
        )

    def patience(self, ticket: Ticket, queue: QueueState) -> float:
        ttft = self.slo.ttft
        if ttft is None:
            return self.max_wait
        if queue.backlog < LATE * ttft and self.budget.left >= 1:
            return LATE * ttft
        if queue.backlog < ttft:
            # A burst passes, so serve the tickets that can still be in time.
            return max(0.1 * ttft, ttft - self._prefill.at(ticket.prompt_tokens))
        # The slack is the same for every length: what the longest prompt can bear. It also waits
        # longest for room at the head of the queue. Otherwise a long prompt would be refused where
        # a short one is accepted.
        longest = self._long_prompt()
        # One interval is always allowed, or only tickets that may start at once would be accepted.
        slack = max(queue.interval, 0.1 * ttft, ttft - self._first_token_within(longest) - self._head_wait(longest, queue))
        return self.queue.patience(slack, queue, self._recent.step or 0.0)

    def overdue(self, ticket: Ticket, queue: QueueState, now: float) -> float | None:
        ttft = self.slo.ttft
        if ttft is not None and ticket not in self._late and queue.backlog <= LATE * ttft and self.budget.spend():
            self._late.add(ticket)
            until = _arrival(ticket, now) + LATE * ttft - self._first_token_within(ticket.prompt_tokens, 1.0)
            if until > now:
                return until
        self.reserve.on_timeout()
        return None

    # Observations

    def started(self, ticket: Ticket, now: float) -> None:
        self.reserve.started()
        if ticket.yields:
            # The others find room that is kept for them.
            self.queue.started(waited=now > ticket.queued, pressure=self._pressure)
        self._usually_pending += (self._pending - self._usually_pending) / 64
        fresh = self._fresh(ticket)
        self._pending += fresh
        # An idle engine's first step is not timed, so its tokens say nothing about their time.
        timed = ticket.prompt_tokens if self._live else max(0, fresh - self.step_size.most)
        self._live[ticket] = _Running(fresh, self._pending, self.stalls.started(fresh), timed)
        self.cache.started(ticket)

    def first_token(self, ticket: Ticket, now: float) -> None:
        running = self._live.get(ticket)
        if running is None or running.first_token is not None:
            return
        running.first_token = now
        self.budget.earn()
        running.steps = self._sample.steps if self._sample else 0
        self._pending -= running.fresh
        self.step_size.computed(running.timed)
        self.stalls.computed(running.lot, running.fresh)
        self.stalls.answers(ticket)
        if ticket.granted is not None:
            # The fit of the time to the first token needs all the prompts that it waited for.
            self._prefill.add(running.ahead, now - ticket.granted)

    def left(self, ticket: Ticket, now: float) -> float | None:
        running = self._live.pop(ticket)
        self._departures.append(now)
        self.cache.left(ticket)
        if running.first_token is None:
            self._pending -= running.fresh
            self.stalls.computed(running.lot, running.fresh)
        self.stalls.ended(ticket)
        if not self._live:
            self.cache.committed, self._pending = 0.0, 0
        if self.slo.tpot is not None and ticket.complete and running.first_token is not None and ticket.generated > 1:
            tpot = (now - running.first_token) / (ticket.generated - 1)
            self.spread.add(tpot / self.slo.tpot, running.first_token)
        return ticket.prompt_tokens + OUTPUT_WEIGHT * ticket.generated

    def record(self, sample: EngineSample, now: float) -> None:
        last, self._sample = self._sample, sample
        if last is None:
            return
        steps, seconds = sample.steps - last.steps, sample.busy_seconds - last.busy_seconds
        # A new process counts from 0 again.
        if steps > 0 and seconds >= 0:
            self._recent.add(seconds, steps, sample.running)
            self.step_size.found(sample.cached_tokens - last.cached_tokens)
            if sample.steps // LOOK > last.steps // LOOK:
                self.cache.grown(self._live)
                self.step_size.learn(self._recent.mean_running, self._target, self.slo, self._long_prompt())
            # Whether the step had no prompt: all that were there would have been complete with it.
            could_be_complete = not self._were_pending or self._were_pending + sample.running <= self.step_size.tokens
            if sample.prompt_tokens == last.prompt_tokens and could_be_complete:
                self._step.add(sample.running, seconds / steps)
            else:
                self.step_size.stepped(steps, seconds, sample.running)
            if self.slo.tpot is not None:
                self.stalls.stepped(steps, seconds, self._target)
                self.spread.watch((self._recent.step or 0.0) / self.slo.tpot, now)
        self._were_pending = self._pending
        self.cache.preemptions.record(sample.preemptions - last.preemptions, sample.kv_usage, now)

    def figures(self) -> PolicyFigures:
        counting = "the engine does not report its steps" if self._sample is None else None
        return PolicyFigures(counting, self.spread.margin, self._recent.step, self.step_tokens)

    # Predictions

    def _expires(self, ticket: Ticket, queue: QueueState, now: float) -> float:
        ttft = self.slo.ttft
        if ttft is None:
            return now + self.max_wait
        # Under pressure another ticket takes its slot, and is more likely to be in time.
        first = self._first_token_within(ticket.prompt_tokens, DEVIATIONS if queue.backlog >= ttft else 1.0)
        return _arrival(ticket, now) + max(0.1 * ttft, ttft - first)

    def _is_too_slow(self, ticket: Ticket, first: float) -> bool:
        """Whether the prompt alone takes longer than the TTFT target."""
        ttft = self.slo.ttft
        return ttft is not None and first > ttft and self._prefill.at(ticket.prompt_tokens - ticket.cached_tokens) > ttft

    def _spare(self, now: float) -> int:
        """Return how many tickets may wait in the engine, so that no slot stays empty for a step.

        This is the number that left recently, within a small part of the TTFT target. After a burst
        that filled the engine, no ticket leaves for a long time.
        """
        recent = now - 0.1 * (self.slo.ttft or 1.0)
        return len(self._departures) - bisect(self._departures, recent)

    def _first_token_within(self, prompt_tokens: int, deviations: float = DEVIATIONS) -> float:
        """Return the seconds from the start to the first token that are hardly ever exceeded."""
        return self._prefill.at(self._usually_pending + prompt_tokens) + deviations * self._prefill.deviation

    def _long_prompt(self) -> int:
        """Return a length above nearly all requested prompts that can meet the TTFT target."""
        longest = self.prompts.quantile(0.97)
        if self._prefill.b > 0 and self.slo.ttft is not None:
            longest = min(longest, max(0.0, 0.8 * self.slo.ttft - self._prefill.a) / self._prefill.b)
        return int(longest)

    def _fresh(self, ticket: Ticket) -> int:
        return ticket.prompt_tokens - ticket.cached_tokens

    def _size(self, ticket: Ticket, cached: int = 0) -> float:
        """Return the prompt tokens for which there must be room to let the ticket in."""
        return max(ticket.prompt_tokens - cached, self.reserve.share * self._long_prompt())

    def _obstructs(self, ticket: Ticket, model: StepModel) -> bool:
        """Whether this prompt would make those of other tenants wait for more than a step within the target."""
        return self._pending > 0 and (self._pending + self._fresh(ticket)) * model.token > model.spare

    def _step_with(self, ticket: Ticket) -> float:
        """Return the mean step time with this ticket, extrapolated from the measured time."""
        recent = self._recent
        step = recent.step
        if step is None:
            return 0.0
        mean = recent.mean_running
        # The slope is at most that of a line through the origin: part of a step does not grow with
        # the number of sequences.
        slope = min(self._step.b, step / mean) if mean else 0.0
        more = slope * (len(self._live) + 1 - mean)
        prompts = self._pending + self._size(ticket, ticket.cached_tokens) + ticket.room.prompt_tokens
        return step + more + self._prefill.b * prompts / max(recent.steps, 1.0)

    @property
    def _target(self) -> float:
        """Seconds that the mean step may take; infinite without a target per token."""
        return math.inf if self.slo.tpot is None else self.spread.margin * self.slo.tpot

    def _model(self) -> StepModel | None:
        """Return what steps take; None without a target, or if even steps without prompts are too slow."""
        spare = self._target - self._step.at(len(self._live))
        if self._sample is None or not 0 < spare < math.inf:
            return None
        # A step takes longer than its mean as often as not.
        return StepModel(spare, self._prefill.b * (1 + self._prefill.relative_deviation), self.step_size.tokens)

    def _head_wait(self, prompt_tokens: int, queue: QueueState) -> float:
        """Return the seconds that a prompt waits at the head of the queue, for room and for running answers."""
        room = self.queue.for_room * queue.pace * (prompt_tokens + OUTPUT_WEIGHT * queue.answer_tokens)
        model = self._model()
        return room if model is None else room + model.making_up(prompt_tokens, self._step.at(len(self._live)))


def _memory(slo: SLO) -> float:
    """Return the seconds over which the time of a step is averaged."""
    return max(1.0, 20 * (slo.tpot or 0.0))


def _arrival(ticket: Ticket, now: float) -> float:
    return now if ticket.arrived is None else ticket.arrived
