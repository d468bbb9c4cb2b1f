"""Builds an admission controller from the operator's settings and the engine's batch size."""

from collections.abc import Callable
from copy import deepcopy
from typing import cast

import attrs

from llmserve.admission.controller import AdmissionController
from llmserve.admission.lategate import LateGate
from llmserve.admission.policies import FixedLimit, Policy, Unlimited
from llmserve.admission.pool.policy import PoolPolicy
from llmserve.admission.pool.router import Router
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


ACCEPTED = "a policy, such as FixedLimit(8) or Unlimited(), a policy's name, an object with the methods of Admission, or None"


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
        if all(hasattr(admission, name) for name in ("holds", "started", "left")):
            if config.max_running is not None:
                raise ConfigurationError("admission= is a policy, which has its own limit: remove max_running from AdmissionConfig")
            if config.policy is not None:
                raise ConfigurationError("admission= is a policy: remove policy from AdmissionConfig")
            return None, cast("Policy", admission)
    words = f"the class {admission.__name__}" if isinstance(admission, type) else type(admission).__name__
    raise TypeError(f"admission must be {ACCEPTED}, not {words}; pass an AdmissionConfig as ManagerConfig(admission=...)")


@attrs.frozen
class PolicySetup:
    """What the policies are made from: the operator's settings and the engine's batch sizes."""

    config: AdmissionConfig
    slo: SLO
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    min_step_tokens: int | None = None

    def policy(self) -> Policy:
        """Make the policy that the settings name. Raises ConfigurationError."""
        return POLICIES[check_policy(self.config.policy_for(self.slo))](self)

    @property
    def max_wait(self) -> float:
        """Longest wait in seconds under a policy that does not predict."""
        return self.config.max_wait if self.slo.ttft is None else min(self.config.max_wait, self.slo.ttft)


def _lategate(setup: PolicySetup) -> Policy:
    if setup.slo == SLO():
        raise ConfigurationError("the policy lategate needs an SLO: set ttft or tpot")
    if setup.config.max_running is not None:
        raise ConfigurationError("the policy lategate finds its own limit: remove max_running")
    return LateGate(setup.slo, setup.max_num_seqs, setup.max_num_batched_tokens, setup.config.max_wait, setup.min_step_tokens)


def _fixed(setup: PolicySetup) -> Policy:
    limit = setup.config.max_running
    if limit is None:
        limit = setup.max_num_seqs + max(1, setup.max_num_seqs // HEADROOM)
    if not limit:
        raise ConfigurationError("the policy fixed needs a max_running above 0")
    return FixedLimit(limit, max_wait=setup.max_wait)


def _unlimited(setup: PolicySetup) -> Policy:
    if setup.config.max_running:
        raise ConfigurationError("the policy unlimited has no limit: remove max_running")
    return Unlimited(max_wait=setup.max_wait)


# By the name in `AdmissionConfig.policy`, `--policy` and `EngineManager(admission=...)`.
POLICIES: dict[str, Callable[[PolicySetup], Policy]] = {"lategate": _lategate, "fixed": _fixed, "unlimited": _unlimited}


def check_policy(name: str) -> str:
    """Return the name. Raises ConfigurationError if there is no such policy."""
    if name not in POLICIES:
        raise ConfigurationError(f"unknown policy {name!r}; choose from {', '.join(POLICIES)}")
    return name


def build_admission(
    config: AdmissionConfig,
    slo: SLO,
    max_num_seqs: int,
    max_num_batched_tokens: int | None = None,
    policy: Policy | None = None,
    engines: int = 1,
    min_step_tokens: int | None = None,
) -> AdmissionController:
    """Build a controller for engines that each batch `max_num_seqs` sequences.

    `AdmissionConfig` describes the meaning of None. A `policy` is used unchanged by one engine, and
    copied for each of several engines. `min_step_tokens` is the smallest maximum of tokens in a step
    that the engines accept while they are up, None if they accept none. Raises ConfigurationError if the settings name an unknown
    policy, or do not fit the one that they name.
    """
    setup = PolicySetup(config, slo, max_num_seqs, max_num_batched_tokens, min_step_tokens)
    if engines == 1:
        whole = policy or setup.policy()
    else:
        policies = [deepcopy(policy) if policy else setup.policy() for _ in range(engines)]
        whole = PoolPolicy(policies, config.max_wait, Router(engines, max_num_seqs))
    limit = whole.limit
    if limit is None:
        limit = engines * max_num_seqs if policy else 0
    max_waiting = LINE * limit if config.max_waiting is None else config.max_waiting
    return AdmissionController(whole, max_waiting=max_waiting, max_wait=config.max_wait, tenants=Tenants(config.table))
