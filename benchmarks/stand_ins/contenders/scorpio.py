"""SCORPIO's two guards, as far as they work outside of the engine.

The TTFT guard orders the queue by deadline, and refuses what cannot meet it any more. The TPOT
guard starts a request only if the predicted step of the larger batch meets the TPOT SLO. With one
SLO for all requests the virtual batch size is the batch size, the order is that of the arrivals,
and the credits, which choose a part of the batch for each step, choose everything.
"""

from benchmarks.stand_ins.contender import UNBOUNDED, Profile, Refusing, Setup
from llmserve.admission import AdmissionController, EngineSample, FixedLimit, Refused, Ticket, TicketState

SOURCE, URL = "SCORPIO (Tang et al., 2025)", "https://arxiv.org/abs/2505.23022"
HEADLINE = "up to 14.4 times the goodput of vLLM's and SGLang's schedulers"
SIGNALS = {"virtual batch size that meets the SLO": lambda one: one.policy.limit, "predicted TTFT, of the SLO": lambda one: one.ttft}


class Guards(Refusing):
    """Keeps the limit at the largest batch whose predicted step meets the TPOT SLO."""

    def __init__(self, setup: Setup) -> None:
        self.guard = FixedLimit(limit=setup.max_num_seqs, max_wait=setup.slo.ttft or 30.0)
        super().__init__(self.guard, max_waiting=UNBOUNDED)
        self._setup, self._profile = setup, Profile()
        self._prompts: dict[Ticket, int] = {}
        self.ttft = 0.0

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        target, compute = self._setup.slo.ttft or 1e9, self._profile.compute
        self.ttft = compute(sum(self._prompts.values()) + ticket.prompt_tokens) / target
        if self.ttft > 1 and self._prompts:
            return self.refuse(ticket, now)
        refused = super().offer(ticket, now)
        if refused is None:
            self._prompts[ticket] = ticket.prompt_tokens
            if ticket.state is TicketState.WAITING:
                ticket.expires = now + max(0.0, target - compute(ticket.prompt_tokens))
        return refused

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        self._prompts.pop(ticket, None)
        return super().first_token(ticket, now)

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        self._prompts = {ticket: tokens for ticket, tokens in self._prompts.items() if ticket.state is not TicketState.DONE}
        self._profile.record(sample, len(self._prompts))
        target, fit = self._setup.slo.tpot, self._profile.decode
        if target is not None and fit.learnt and fit.b:
            fitting = (target * max(0.1, 1 - self._profile.prompts) - fit.a) / fit.b
            self.guard.limit = int(min(max(1.0, fitting), self._setup.max_num_seqs))
        return super().record(sample, now)


def make(setup: Setup) -> AdmissionController:
    return Guards(setup)
