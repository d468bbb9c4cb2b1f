"""llm-d's concurrency limit, from the formulas of its tuning guide.

The limit is the smaller of two, and a few more requests that wait in the engine. One is Little's
law at the highest load that meets the SLO: throughput times latency. The other is the number of
requests whose mean cache, halfway through their answers, fits into 90 % of the cache with two
standard deviations to spare. 200 requests wait in front of it, each
for at most a third of the TTFT: with the default of 60 s all of them would be late.
"""

import math

from benchmarks.stand_ins.contender import Setup
from benchmarks.stand_ins.contenders.fixed import third
from llmserve.admission import AdmissionController, FixedLimit
from llmserve.errors import ConfigurationError

SOURCE, URL = "llm-d's tuning guide for flow control", "https://llm-d.ai/docs/dev/operations/traffic/flow-control-tuning"
HEADLINE = "no figure; keeps the engine fed and holds the rest at the gateway"
SIGNALS = {"requests in the engine": lambda one: one.running_on(0), "limit": lambda one: one.policy.limit}
WAITING = 200
USABLE, DEVIATIONS, MAX_BUFFER = 0.9, 2.0, 0.15


def limit(setup: Setup) -> int:
    """Return the limit. Raises ConfigurationError if the workload or the cache is unknown."""
    known = setup.known
    if known is None or setup.kv_tokens is None:
        raise ConfigurationError("the policy llmd needs measurements of the workload, which only the league makes")
    by_compute = int(known.capacity * known.latency)
    mean = known.prompt[0] + known.answer[0] / 2
    deviation = math.sqrt(known.prompt[1] ** 2 + known.answer[1] ** 2 / 3 + known.answer[0] ** 2 / 12)
    # The root of mean x^2 + deviations x = tokens, where x^2 is the number of requests.
    spare = DEVIATIONS * deviation
    root = (math.sqrt(spare**2 + 4 * mean * USABLE * setup.kv_tokens) - spare) / (2 * mean)
    active = max(1, min(by_compute, int(root**2)))
    in_a_step = math.ceil((setup.max_num_batched_tokens or 2048) / max(1.0, known.prompt[0]))
    return active + max(1, min(in_a_step, math.ceil(MAX_BUFFER * active)))


def make(setup: Setup) -> AdmissionController:
    return AdmissionController(FixedLimit(limit=limit(setup), max_wait=third(setup)), max_waiting=WAITING)
