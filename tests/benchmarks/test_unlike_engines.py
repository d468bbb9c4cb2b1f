"""Two engines of different speed and cache behind one admission, in virtual time."""

import attrs
import pytest

from benchmarks.overload.engine import StepEngine
from benchmarks.overload.judge import Verdict, judge
from benchmarks.overload.scenarios import SCENARIOS
from benchmarks.overload.traffic import arrivals, requests
from benchmarks.overload.world import World
from llmserve.admission import build_admission
from llmserve.config import AdmissionConfig

MIXED = SCENARIOS["mixed"]
# Of a model of normal size, and of one twice as large on the same GPU, whose cache has half of the
# tokens: the requests per second of which 99 in 100 meet the SLO without control.
CAPACITY = {1: 21.6, 2: 7.7}


def serve(sizes: tuple[int, ...], rate: float, seed: int) -> Verdict:
    """Play the mixed workload to engines of models of these sizes behind one LateGate."""
    limits = [attrs.evolve(MIXED.size, max_num_batched_tokens=8192, kv_tokens=MIXED.size.kv_tokens // size) for size in sizes]
    laws = [MIXED.law.of_size(size) for size in sizes]
    engines = [StepEngine(limit, law, seed, number) for number, (limit, law) in enumerate(zip(limits, laws, strict=True))]
    size = limits[0]
    admission = build_admission(AdmissionConfig(), MIXED.slo, size.max_num_seqs, size.max_num_batched_tokens, engines=len(sizes))
    asked = list(requests(MIXED.mix, arrivals(rate, 0.0, MIXED.seconds, seed), seed))
    World(engines, admission, MIXED.patience, seed=seed).run(asked, MIXED.seconds + 120)
    judged = [request for request in asked if MIXED.warm_up <= request.due < MIXED.seconds - MIXED.cool_down]
    return judge(judged, MIXED.classes, MIXED.slo, MIXED.seconds - MIXED.cool_down - MIXED.warm_up, 0)


@pytest.mark.parametrize("load", [1.0, 1.5, 2.0])
def test_unlike_engines_serve_as_much_together_as_each_with_its_part(load):
    """They share one queue, and no request counts beforehand for one of them."""
    both = serve((1, 2), load * sum(CAPACITY.values()), 1)
    alone = [serve((size,), load * rate, seed) for seed, (size, rate) in enumerate(CAPACITY.items(), 1)]
    assert both.goodput >= 0.97 * sum(verdict.goodput for verdict in alone)
    assert both.miss_share <= 0.01
