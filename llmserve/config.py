"""What an operator decides. Frozen, and checked when made: a wrong value is a `ConfigurationError` that names it."""

import math
from typing import Any

import attrs

from llmserve.errors import ConfigurationError


def _positive(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigurationError(f"{attribute.name} must be a positive number, not {value!r}")


def _at_least(low: int) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value is not None and (type(value) is not int or value < low):
            raise ConfigurationError(f"{attribute.name} must be a whole number of at least {low}, not {value!r}")

    return check


@attrs.frozen(kw_only=True)
class SLO:
    """What a client was promised, in seconds: the time to the first token, and for each token after it."""

    ttft: float | None = attrs.field(default=None, validator=_positive)
    tpot: float | None = attrs.field(default=None, validator=_positive)


@attrs.frozen(kw_only=True)
class AdmissionConfig:
    """How much work is taken on.

    Attributes:
        max_running: sequences in the engine at once. None asks the engine: as many as it batches and an eighth more, so
            that a successor is at hand when one finishes. 0 sets no limit at all.
        max_waiting: requests that may wait for a slot; None is four times max_running.
        max_wait: longest wait for a slot in seconds. A request that is bound to wait longer is refused on arrival. With
            an SLO its ttft is the bound, where it is shorter.
        tenant_limit: requests of one tenant, running and waiting; None sets no limit.
    """

    max_running: int | None = attrs.field(default=None, validator=_at_least(0))
    max_waiting: int | None = attrs.field(default=None, validator=_at_least(0))
    max_wait: float = attrs.field(default=30.0, validator=_positive)
    tenant_limit: int | None = attrs.field(default=None, validator=_at_least(1))


@attrs.frozen(kw_only=True)
class ManagerConfig:
    """How an `EngineManager` behaves.

    Attributes:
        slo: counts goodput and bounds the wait; None promises nothing.
        max_tokenizing: requests whose prompts may be in the engine's tokeniser, or wait for it; more are refused.
        max_tokens: most tokens that any request may generate; None leaves the model's context as the bound.
        cleanup_timeout: longest time for the engine to confirm an abort, in seconds, before its slot is given on anyway.
        drain_timeout: how long leaving `async with` lets running requests go on, in seconds.
    """

    slo: SLO = attrs.field(factory=SLO)
    admission: AdmissionConfig = attrs.field(factory=AdmissionConfig)
    max_tokenizing: int = attrs.field(default=1024, validator=_at_least(1))
    max_tokens: int | None = attrs.field(default=None, validator=_at_least(1))
    cleanup_timeout: float = attrs.field(default=5.0, validator=_positive)
    drain_timeout: float = attrs.field(default=30.0, validator=_positive)
