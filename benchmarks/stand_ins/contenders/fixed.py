"""`fixed:N`: at most N requests in the engine, each waiting at most a third of the TTFT; `fixed:N:S`: S seconds."""

import math
from collections.abc import Sequence

from benchmarks.stand_ins.contender import UNBOUNDED, Setup
from llmserve.admission import AdmissionController, FixedLimit

SOURCE, URL = "a fixed limit, the best in hindsight", ""
HEADLINE = "none; what an operator reaches who tries every limit on the very load"
SIGNALS = {"requests in the engine": lambda one: one.running_on(0)}
LIMITS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256)


def make(setup: Setup, limit: str, seconds: str | None = None) -> AdmissionController:
    wait = third(setup) if seconds is None else float(seconds)
    return AdmissionController(FixedLimit(limit=int(limit), max_wait=wait), max_waiting=UNBOUNDED)


def variants(setup: Setup) -> Sequence[str]:
    return [str(limit) for limit in LIMITS]


def third(setup: Setup) -> float:
    """Return a third of the TTFT objective in seconds."""
    return setup.slo.ttft / 3 if setup.slo.ttft is not None else math.inf
