"""Builds an admission controller from the operator's settings and the engine's batch size."""

from typing import cast

from llmserve.admission.controller import AdmissionController
from llmserve.admission.lategate import LateGate
from llmserve.admission.policies import FixedLimit, Policy, Unlimited
from llmserve.admission.protocol import Admission
from llmserve.admission.tenants import Tenants
from llmserve.config import SLO, AdmissionConfig
from llmserve.errors import ConfigurationError

# A limit of exactly the engine's batch size would leave a slot empty until the next request
# arrives. With an eighth more, the successor waits inside the engine when a sequence ends.
HEADROOM = 8
# Default length of the queue, in limits. With answers of equal length, the last request waits for
# four generations of them.
LINE = 4


ACCEPTED = "a policy, such as FixedLimit(8) or Unlimited(), an object with the methods of Admission, or None"


def separate(admission: Admission | Policy | None, config: AdmissionConfig) -> tuple[Admission | None, Policy | None]:
    """Distinguish an Admission from a policy. Return one of the two, or neither.

    Raises:
        TypeError: The object is neither; the message says what is accepted.
        ConfigurationError: The object is a policy, and `config` has a limit too.
    """
    if admission is None:
        return None, None
    if not isinstance(admission, type):
        if all(hasattr(admission, name) for name in ("screen", "offer", "leave", "give_up")):
            return cast("Admission", admission), None
        if all(hasattr(admission, name) for name in ("weigh", "holds", "started", "left")):
            if config.max_running is not None:
                raise ConfigurationError("admission= is a policy, which has its own limit: remove max_running from AdmissionConfig")
            return None, cast("Policy", admission)
    words = f"the class {admission.__name__}" if isinstance(admission, type) else type(admission).__name__
    raise TypeError(f"admission must be {ACCEPTED}, not {words}; pass an AdmissionConfig as ManagerConfig(admission=...)")


def build_admission(
    config: AdmissionConfig, slo: SLO, max_num_seqs: int, max_num_batched_tokens: int | None = None, policy: Policy | None = None
) -> AdmissionController:
    """Build a controller for an engine that batches `max_num_seqs` sequences.

    `AdmissionConfig` describes the meaning of None. A `policy` is used unchanged.
    """
    if policy is None:
        policy, limit = _policy(config, slo, max_num_seqs, max_num_batched_tokens)
    else:
        limit = max_num_seqs if policy.limit is None else policy.limit
    max_waiting = LINE * limit if config.max_waiting is None else config.max_waiting
    return AdmissionController(policy, max_waiting=max_waiting, max_wait=config.max_wait, tenants=Tenants(config.table))


def _policy(config: AdmissionConfig, slo: SLO, max_num_seqs: int, max_num_batched_tokens: int | None) -> tuple[Policy, int]:
    """Return the policy for `config` and `slo`, and the limit that scales the queue's length."""
    limit = config.max_running
    if limit is None and slo != SLO():
        gate = LateGate(slo, max_num_seqs, max_num_batched_tokens, config.max_wait)
        return gate, gate.limit
    max_wait = config.max_wait if slo.ttft is None else min(config.max_wait, slo.ttft)
    if limit is None:
        limit = max_num_seqs + max(1, max_num_seqs // HEADROOM)
    return (FixedLimit(limit, max_wait=max_wait) if limit else Unlimited(max_wait=max_wait)), limit
