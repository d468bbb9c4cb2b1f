"""The cost of an admission decision in microseconds, with RUNNING sequences in the engine."""

import statistics
import time
from collections.abc import Callable

from llmserve.admission import AdmissionController, EngineSample, LateGate, Ticket, TicketState
from llmserve.config import SLO

RUNNING = 256
TIMES = 2000


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
    }


def _ticket(number: int) -> Ticket:
    return Ticket(request_id=str(number), prompt_tokens=200, max_tokens=256, arrived=0.0)


def _median(act: Callable[[int], object]) -> float:
    taken = []
    for number in range(TIMES):
        began = time.perf_counter()
        act(number)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6
