"""Mooncake's early rejection by predicted load.

A request is refused if a load would exceed 1 when its prompt is complete: the predicted TTFT or time
per token over its SLO, or the batch over the largest. As in the paper, all answers are assumed to
decode for the same time; longer ones count until they end. Its prompts have their own engines.
"""

from benchmarks.stand_ins.contender import Profile, Refusing, Setup
from llmserve.admission import AdmissionController, EngineSample, Refused, Ticket, Unlimited

SOURCE, URL = "Mooncake (Qin et al., FAST 2025), section on overload", "https://arxiv.org/abs/2407.00079"
HEADLINE = "the whole system: up to 525 % more throughput in simulation, 75 % more requests in production"
SIGNALS = {
    "predicted TTFT, of the SLO": lambda one: one.load[0],
    "predicted TPOT, of the SLO": lambda one: one.load[1],
    "predicted batch, of the largest": lambda one: one.load[2],
    "mean time of an answer, s": lambda one: one.answering or None,
}


class EarlyRejection(Refusing):
    """Predicts the load at the end of each new prompt; `load` is that of the last one."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(Unlimited())
        self._slo, self._most, self._profile = setup.slo, setup.max_num_seqs, Profile()
        self._prompts: dict[Ticket, int] = {}
        self._answers: dict[Ticket, float] = {}
        self.answering = 0.0
        self.load = 0.0, 0.0, 0.0

    def offer(self, ticket: Ticket, now: float) -> Refused | None:
        seconds = self._profile.compute(sum(self._prompts.values()) + ticket.prompt_tokens)
        still = sum(not now < began + self.answering < now + seconds for began in self._answers.values())
        batch = still + len(self._prompts) + 1
        self.load = seconds / (self._slo.ttft or 1e9), self._profile.step(batch) / (self._slo.tpot or 1e9), batch / self._most
        if max(self.load) > 1 and (self._prompts or self._answers):
            return self.refuse(ticket, now)
        self._prompts[ticket] = ticket.prompt_tokens
        return super().offer(ticket, now)

    def first_token(self, ticket: Ticket, now: float) -> list[Ticket]:
        self._prompts.pop(ticket, None)
        self._answers[ticket] = now
        return super().first_token(ticket, now)

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        self._prompts.pop(ticket, None)
        took = now - self._answers.pop(ticket, now)
        self.answering += (took - self.answering) / 50 if self.answering else took
        return super().leave(ticket, now)

    def record(self, sample: EngineSample, now: float) -> list[Ticket]:
        self._profile.record(sample, len(self._prompts))
        return super().record(sample, now)


def make(setup: Setup) -> AdmissionController:
    return EarlyRejection(setup)
