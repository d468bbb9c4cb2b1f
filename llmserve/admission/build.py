"""From what an operator decided, and what the engine can batch, to a controller."""

from llmserve.admission.controller import AdmissionController
from llmserve.admission.lategate import LateGate
from llmserve.admission.policies import FixedLimit, Policy, Unlimited
from llmserve.admission.tenants import Tenants
from llmserve.config import SLO, AdmissionConfig

# A limit of exactly what the engine batches would leave it a place short until the next request comes over: with an eighth
# more, the successor waits inside the engine when one finishes.
HEADROOM = 8
# The line's default length, in limits: with answers of equal length its last one waits for four generations of them.
LINE = 4


def build_admission(config: AdmissionConfig, slo: SLO, max_num_seqs: int, max_num_batched_tokens: int | None = None) -> AdmissionController:
    """A controller for an engine that batches `max_num_seqs` sequences; see `AdmissionConfig` for what None means."""
    limit = config.max_running
    policy: Policy
    if limit is None and slo != SLO():
        policy = LateGate(slo, max_num_seqs, max_num_batched_tokens, config.max_wait)
        limit = policy.limit
    else:
        max_wait = config.max_wait if slo.ttft is None else min(config.max_wait, slo.ttft)
        if limit is None:
            limit = max_num_seqs + max(1, max_num_seqs // HEADROOM)
        policy = FixedLimit(limit=limit, max_wait=max_wait) if limit else Unlimited(max_wait=max_wait)
    max_waiting = LINE * limit if config.max_waiting is None else config.max_waiting
    return AdmissionController(policy, max_waiting=max_waiting, max_wait=config.max_wait, tenants=Tenants(config.table))
