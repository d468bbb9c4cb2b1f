"""The cost of an admission decision in microseconds, with RUNNING sequences in the engine."""

import bisect
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from llmserve.admission import AdmissionController, EngineSample, LateGate, Ticket, TicketState, build_admission
from llmserve.admission.pool.prefixes import prefix_keys
from llmserve.config import SLO, AdmissionConfig

RUNNING = 256
TIMES = 2000
# The pools: tickets that run in each engine at light load, and the batch of a full one; arrivals of
# a round; and the prompts, some of which have the same beginnings.
LIGHT, BATCH = 32, 64
ARRIVALS = 500
PROMPT_TOKENS, PROMPTS = 512, 200
POOL_POLICIES = {"fixed": SLO(), "lategate": SLO(ttft=1000.0, tpot=1.0)}


def measure() -> dict[str, float]:
    """Return medians with a cache so full that every check has to plan, the slowest gate."""
    policy = LateGate(SLO(ttft=1000.0, tpot=0.05), 2 * RUNNING, 8192)
    controller = AdmissionController(policy, max_waiting=RUNNING)
    cache = RUNNING * 300
    sample = EngineSample(kv_tokens=cache, kv_usage=0.9, running=RUNNING)
    controller.record(sample, 0.0)
    running = [_ticket(number) for number in range(RUNNING)]
    for ticket in running:
        controller.offer(ticket, 0.0)
        controller.first_token(ticket, 0.01)
    for number in range(1, 200):
        sample = EngineSample(steps=number, busy_seconds=0.02 * number, kv_tokens=cache, kv_usage=0.9, running=RUNNING)
        controller.record(sample, 0.02 * number)
    now, steps = 4.0, 200
    waiting = _ticket(-1)
    controller.offer(waiting, now)
    assert waiting.state is TicketState.WAITING

    def arrive(number: int) -> None:
        controller.offer(_ticket(number), now + number * 1e-4)

    def record(number: int) -> None:
        told = EngineSample(steps=steps + number, busy_seconds=0.02 * (steps + number), kv_tokens=cache, kv_usage=0.9, running=RUNNING)
        controller.record(told, now)

    return {
        "arrival, refused or waiting": _median(arrive),
        "arrival, refused before tokenization": _median(lambda number: controller.screen(_ticket(number), now + 1.0)),
        "step, with a request held by the cache": _median(record),
        "check of a request held by the running answers' stalls": _stalls(),
    }


def _stalls() -> float:
    """Return the median of a check that has to look at as many answers as possible.

    The prompt is the shortest that is held: one that is a little shorter would make as many answers
    late as may be.
    """
    policy = LateGate(SLO(ttft=1000.0, tpot=0.05), 2 * RUNNING, 8192)
    controller = AdmissionController(policy, max_waiting=RUNNING)
    controller.record(EngineSample(running=RUNNING), 0.0)
    for number in range(RUNNING):
        ticket = _ticket(number, 200 + 8 * number)
        controller.offer(ticket, 0.1 * number)
        controller.first_token(ticket, 0.1 * number + 25e-6 * ticket.prompt_tokens)
    for number in range(1, 200):
        controller.record(EngineSample(steps=number, busy_seconds=0.03 * number, running=RUNNING), 0.1 * RUNNING + 0.03 * number)
    policy.stalls.left, now = policy.stalls.MAX_LEFT, 0.1 * RUNNING + 6.0
    sizes = range(1, 1 << 17)
    held = _ticket(-1, sizes[bisect.bisect_left(sizes, True, key=lambda size: policy.holds(_ticket(-1, size), now) is not None)])
    assert policy.holds(held, now) == "stall"
    return _median(lambda _: policy.holds(held, now))


def _ticket(number: int, prompt_tokens: int = 200) -> Ticket:
    return Ticket(request_id=str(number), prompt_tokens=prompt_tokens, max_tokens=256, arrived=0.0)


def _median(act: Callable[[int], object]) -> float:
    taken = []
    for number in range(TIMES):
        began = time.perf_counter()
        act(number)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


@attrs.define
class Pool:
    """A controller under a steady load: for each ticket that arrives, one leaves."""

    controller: AdmissionController
    engines: int
    full: bool
    running: deque[Ticket] = attrs.field(factory=deque)
    now: float = 0.0
    _arrived: "itertools.count[int]" = attrs.field(factory=itertools.count)

    @classmethod
    def under_load(cls, policy: str, engines: int, *, full: bool) -> "Pool":
        config = AdmissionConfig(policy=policy, max_running=BATCH if policy == "fixed" else None, max_waiting=10**6, max_wait=10**6)
        pool = cls(build_admission(config, POOL_POLICIES[policy], BATCH, 10**6, engines=engines), engines, full)
        pool.serve(pool.tickets((2 * BATCH if full else LIGHT) * engines), leaving=False)
        return pool

    def tickets(self, count: int) -> list[Ticket]:
        """Return new tickets of ten tenants; a single engine gets no keys of prompts."""
        found = []
        for number in itertools.islice(self._arrived, count):
            prefix = _PREFIXES[number * 7 % PROMPTS] if self.engines > 1 else ()
            ticket = Ticket(request_id=str(number), tenant=f"tenant {number % 10}", prefix=prefix)
            ticket.prompt_tokens, ticket.max_tokens = PROMPT_TOKENS, 128
            found.append(ticket)
        return found

    def serve(self, tickets: Iterable[Ticket], *, leaving: bool = True) -> None:
        """Let tickets arrive, start, get their first token and, in the order of the starts, leave."""
        for ticket in tickets:
            self.now += 0.01 / self.engines
            self.controller.screen(ticket, self.now)
            self.controller.offer(ticket, self.now)
            self._begin((ticket,))
            if leaving:
                oldest = self.running.popleft()
                oldest.generated, oldest.complete = 100, True
                self._begin(self.controller.leave(oldest, self.now))

    def _begin(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if ticket.state is TicketState.RUNNING:
                self.running.append(ticket)
                self._begin(self.controller.first_token(ticket, self.now))


_PREFIXES = [prefix_keys(range(number // 4 * 1000, number // 4 * 1000 + PROMPT_TOKENS)) for number in range(PROMPTS)]


def pools(engines: Sequence[int] = (1, 8, 64), rounds: int = 15) -> list[dict[str, Any]]:
    """Return, for each policy and load, the CPU time of an arrival in microseconds by engines.

    An arrival costs the calls for one ticket, from `screen` to `leave`. The numbers of engines
    take turns, so that a change of the machine's speed meets all of them; `growth` is the median of
    the rounds' ratios of the last number of engines to the first.
    """
    found: list[dict[str, Any]] = []
    for policy, full in itertools.product(POOL_POLICIES, (False, True)):
        loaded = [Pool.under_load(policy, count, full=full) for count in engines]
        costs = [[_thread_seconds(pool) / ARRIVALS * 1e6 for pool in loaded] for _ in range(rounds)]
        medians = {count: statistics.median(column) for count, column in zip(engines, zip(*costs, strict=True), strict=True)}
        growth = statistics.median(row[-1] / row[0] for row in costs)
        found.append({"policy": policy, "load": "full queue" if full else "light", "micros": medians, "growth": growth})
    return found


def keys(tokens: int) -> float:
    """Return the CPU time of the keys of a prompt, in microseconds."""
    prompt = list(range(tokens))
    taken = []
    for _ in range(50):
        began = time.thread_time()
        for _ in range(10):
            prefix_keys(prompt, "tenant")
        taken.append((time.thread_time() - began) / 10)
    return statistics.median(taken) * 1e6


def _thread_seconds(pool: Pool) -> float:
    tickets = pool.tickets(ARRIVALS)
    began = time.thread_time()
    pool.serve(tickets)
    return time.thread_time() - began
