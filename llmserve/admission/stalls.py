"""How much longer prompts may hold up the running answers.

While the engine computes a prompt, its step takes longer, and every running answer stalls. An
answer meets the TPOT target if all its stalls together take at most the time that its other steps
stay below the target. This module knows for each answer how much of that time is left.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappush

import attrs

from llmserve.admission.length_estimates import Seen
from llmserve.admission.regression import LinearFit
from llmserve.admission.ticket import Ticket
from llmserve.config import SLO

logger = logging.getLogger(__name__)

# The share of answers that may be late: a third of the one in a hundred that an SLO usually allows.
LATE_SHARE = 0.003
# A loss of prompt tokens per second that is worth a line in the log, and the units of the advice and
# of the size.
REPORTED, ROUND, FINE = 0.03, 64, 16
# Number of steps with prompts that the time of a prompt token is averaged over, and of prompts that
# it needs.
MEMORY, ENOUGH = 400, 8
# The maximum number of tokens in a step stays while the fitting one is between these multiples of it.
LOWER, HIGHER = 0.85, 1.2
# The fewest prompt tokens of a step that are worth a smaller maximum.
PIECE = 128
# Share of the TTFT target that the steps of a long prompt may take together.
TTFT_SHARE = 0.5


@attrs.define(eq=False)
class Lot:
    """Prompts that started between the same two steps, so that the same steps compute them.

    Attributes:
        step: The engine's step count at the start.
        tokens, prompts: Prompt tokens without a first token, and the number of their prompts.
    """

    step: float
    tokens: int = 0
    prompts: int = 0


@attrs.frozen
class StepModel:
    """What steps take.

    Attributes:
        spare: Seconds that a step without prompts stays below the target, above 0.
        token: Seconds for a prompt token.
        tokens: Maximum number of tokens in a step, 0 if unknown.
    """

    spare: float
    token: float
    tokens: int

    def stall(self, prompt_tokens: float) -> float:
        """Return the seconds by which the steps of some prompts exceed the target; below 0 if they stay below it."""
        steps = math.ceil(prompt_tokens / self.tokens) if self.tokens else min(prompt_tokens, 1)
        return self.token * prompt_tokens - self.spare * steps

    def making_up(self, prompt_tokens: float, plain: float) -> float:
        """Return the seconds of steps without prompts, `plain` each, that make up for a stall."""
        return plain * max(0.0, self.stall(prompt_tokens)) / self.spare

    def report(self, plain: float, tpot: float, sequences: int) -> str | None:
        """Describe what the maximum number of tokens costs; None if it costs next to nothing.

        Args:
            plain: Seconds of a step without prompts.
            tpot: The TPOT target in seconds.
            sequences: Maximum number of sequences in a step.
        """
        full = plain + self.token * self.tokens
        making_up = self.making_up(self.tokens, plain)
        lost = making_up / (full + making_up)
        room = int(self.spare / self.token)
        fitting = max(room // ROUND * ROUND, sequences)
        if lost < REPORTED or room < PIECE or fitting >= self.tokens:
            return None
        return (
            f"a step of max_num_batched_tokens={self.tokens} takes {full:.2g} s, {full / tpot:.2g} times slo.tpot: "
            "under load, prompts wait until running answers have made up for it, "
            f"which costs up to {lost:.0%} of the prompt tokens per second; max_num_batched_tokens={fitting} costs nothing"
        )


class StepSize:
    """The maximum number of tokens in a step: the engine's own, or fewer so that it meets the target.

    What a prompt token takes is what steps take longer than without prompts. The time to the first
    token would not do: it contains the steps of answers beside the prompt, and the more of them,
    the smaller the steps are.

    Args:
        step: The fit of the seconds of a step without prompts, by the running sequences.
        most: The engine's own maximum, 0 if unknown.
        sequences: Maximum number of sequences in a step.
        least: The smallest maximum that the engine accepts while it is up; None if it accepts none.
            The log then says what its own maximum costs.

    Attributes:
        tokens: The maximum in use.
    """

    def __init__(self, step: LinearFit, most: int, sequences: int, least: int | None = None) -> None:
        self._step = step
        self.most = self.tokens = most
        self._sequences = sequences
        self._least = least
        self._reported = False
        # Prompts and their tokens, and the seconds that they took; old ones fade.
        self._prompts = self._prompt_tokens = self._seconds = 0.0

    @property
    def wanted(self) -> int | None:
        """The maximum that the engine should use; None if it accepts none while it is up."""
        return None if self._least is None else self.tokens

    def computed(self, prompt_tokens: int) -> None:
        """Note that a prompt is complete of which timed steps have computed these tokens."""
        self._prompts += prompt_tokens > 0
        self._prompt_tokens += prompt_tokens

    def found(self, cached_tokens: int) -> None:
        """Note that the engine has not had to compute these prompt tokens, because its cache had them."""
        self._prompt_tokens -= cached_tokens

    def stepped(self, steps: float, seconds: float, running: int) -> None:
        """Note steps with prompts that took some seconds in total."""
        fade = max(0.0, 1 - steps / MEMORY)
        self._prompts *= fade
        self._prompt_tokens *= fade
        self._seconds = self._seconds * fade + seconds - steps * self._step.at(running)

    def learn(self, running: float, target: float, slo: SLO, prompt_tokens: int) -> None:
        """Set the maximum, or report it, once the times are learnt.

        Args:
            running: Sequences in a step.
            target: Seconds that a step may take.
            slo: The targets in seconds; without one for each token the maximum stays.
            prompt_tokens: Length of a long prompt.
        """
        plain = self._step.at(running)
        if slo.tpot is None or not self.most or not self._step.learnt or self._prompts < ENOUGH or plain >= target:
            return
        if self._prompt_tokens <= 0 or self._seconds <= 0:
            return
        model = StepModel(target - plain, self._seconds / self._prompt_tokens, self.most)
        if self._least is None:
            self._log(model.report(plain, slo.tpot, self._sequences))
            return
        # The steps of answers beside a long prompt must leave it enough of its time.
        left = TTFT_SHARE * (slo.ttft or math.inf) - model.token * prompt_tokens
        room = max(model.spare / model.token, plain * prompt_tokens / left if left > 0 else math.inf)
        # In smaller pieces prompts take too many steps. In large ones they are soon over, and the
        # running answers make up for it.
        enough = room >= PIECE * (1.0 if self.tokens < self.most else HIGHER)
        # A sequence takes as many tokens of a step as of the smallest one.
        fitting = room + running * max(1.0, self._least / self._sequences)
        tokens = max(int(fitting) // FINE * FINE, self._least) if enough and fitting < self.most else self.most
        tokens = min(tokens, self.most)
        if not LOWER * self.tokens < tokens < HIGHER * self.tokens:
            self.tokens = tokens
            words = f"beside answers, a step now has at most {tokens} of max_num_batched_tokens={self.most} tokens, as slo.tpot allows"
            self._log(words if tokens < self.most else None)

    def _log(self, words: str | None) -> None:
        """Log the first words, and no later ones."""
        if not self._reported:
            self._reported = True
            if words:
                logger.info(words)


class StallBudget:
    """The stalls that the answers of one engine can still bear.

    Hardly any answer is shorter than the shortest expected one, so until an answer has that length,
    it may borrow the time of the steps to come. A longer one could end with any step, and is late
    if it ends before it has made up for its stalls. The expected number of these is limited to a
    share of all answers.
    """

    # Maximum of the share that is saved up, in answers.
    MAX_LEFT = 1.0

    def __init__(self) -> None:
        self._lots: deque[Lot] = deque()
        # The time by which all steps together stayed below the target, and their number.
        self._saved = 0.0
        self._steps = 0.0
        # For each answer that has not yet the shortest length, in order of the first tokens: the
        # values of `_saved` and `_steps` then. The others as a heap of (-value of `_saved`, number,
        # value of `_steps`, ticket), with those first that have saved least.
        self._young: deque[tuple[float, float, Ticket]] = deque()
        self._old: list[tuple[float, int, float, Ticket]] = []
        self._answers: set[Ticket] = set()
        self._numbers = itertools.count()
        self.lengths = Seen()
        # How many answers may still be late, and the expected number if the ticket asked about last
        # starts.
        self.left = 0.0
        self._risk = 0.0

    def stepped(self, steps: float, seconds: float, target: float) -> None:
        """Count steps that took some seconds in total; each may take `target`."""
        self._steps += steps
        self._saved += target * steps - seconds

    def started(self, prompt_tokens: int) -> Lot:
        """Note that the prompt starts that was asked about last; return its lot."""
        self.left = max(0.0, self.left - self._risk)
        self._risk = 0.0
        if not self._lots or self._lots[-1].step != self._steps:
            # An idle engine starts a step with this prompt at once, without those that follow.
            idle = not self._lots and not self._answers
            self._lots.append(Lot(math.nan if idle else self._steps))
        lot = self._lots[-1]
        lot.tokens += prompt_tokens
        lot.prompts += 1
        return lot

    def computed(self, lot: Lot, prompt_tokens: int) -> None:
        """Note that a prompt is complete, or gone."""
        lot.tokens -= prompt_tokens
        lot.prompts -= 1
        while self._lots and not self._lots[0].prompts:
            self._lots.popleft()

    def answers(self, ticket: Ticket) -> None:
        """Note an answer's first token."""
        self.left = min(self.MAX_LEFT, self.left + LATE_SHARE)
        self._answers.add(ticket)
        self._young.append((self._saved, self._steps, ticket))

    def ended(self, ticket: Ticket) -> None:
        """Note that a ticket has left."""
        self._answers.discard(ticket)
        if ticket.complete and ticket.generated > 1:
            self.lengths.add(ticket.generated)
        if len(self._old) > 2 * len(self._answers) + 16:
            self._old = [entry for entry in self._old if entry[-1] in self._answers]
            heapify(self._old)

    def exceeded(self, prompt_tokens: int, model: StepModel) -> bool:
        """Whether too many answers would be late if these prompt tokens started now."""
        lots = self._lots
        earlier = sum(lot.tokens for lot in lots)
        spilled = 0.0
        if lots and lots[-1].step == self._steps:
            prompt_tokens += lots[-1].tokens
            earlier -= lots[-1].tokens
            spilled = prompt_tokens + len(self._answers) - model.tokens if model.tokens else 0.0
        stall = model.stall(prompt_tokens)
        # The tokens of the shortest answer after its first one.
        shortest = max(0.0, self.lengths.lowest(LATE_SHARE) - 1)
        risk = self._risk_of_old(stall + model.stall(earlier), shortest, model)
        borrowed = model.spare * shortest
        if self._young:
            # The oldest of them has had the most stalls.
            saved, steps, _ = self._young[0]
            if self._saved - saved + borrowed - model.spare * (self._steps - steps) < stall + model.stall(earlier):
                return True
        # So may the answers to the prompts that are being computed, and those to the prompts of the
        # same lot that its first step completes.
        if spilled > 0 and borrowed < model.stall(spilled):
            return True
        if earlier and borrowed < stall + model.stall(earlier - lots[0].tokens):
            return True
        if risk > self.left:
            return True
        self._risk = risk
        return False

    def _risk_of_old(self, stall: float, shortest: float, model: StepModel) -> float:
        """Return how many answers are expected to end before they have made up for a stall."""
        young = self._young
        while young and (young[0][2] not in self._answers or self._steps - young[0][1] >= shortest):
            saved, steps, ticket = young.popleft()
            if ticket in self._answers:
                heappush(self._old, (-saved, next(self._numbers), steps, ticket))
        risk = 0.0
        for lacking, ticket, made in self._lacking(stall):
            if risk > self.left:
                # However many more there are, the answer is the same.
                break
            # What it can still save.
            to_come = model.spare * max(1.0, ticket.expected_tokens - made)
            # One that is late in any case does not keep prompts waiting.
            if lacking - stall < to_come:
                risk += min(1.0, lacking / to_come)
        return risk

    def _lacking(self, stall: float) -> Iterator[tuple[float, Ticket, float]]:
        """Yield (seconds, ticket, tokens so far) of the old answers that have saved too little for a stall."""
        old, todo = self._old, [0]
        while todo:
            place = todo.pop()
            if place < len(old):
                negative, _, steps, ticket = old[place]
                lacking = stall - self._saved - negative
                if lacking > 0:
                    todo += (2 * place + 1, 2 * place + 2)
                    if ticket in self._answers:
                        yield lacking, ticket, self._steps - steps
