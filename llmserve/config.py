"""Settings of the operator: frozen, and checked when they are made.

A ConfigurationError names a wrong value.
"""

import math
import tomllib
from typing import Any, Self

import attrs

from llmserve.errors import ConfigurationError

# Bounds of a tenant's limits. Between them no quotient or sum in admission becomes 0 or infinite.
MIN_NUMBER, MAX_NUMBER = 1e-6, 1e15
# Maximum length of a wrong value in an error message.
MAX_CHARACTERS = 64


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


def read_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ConfigurationError.

    Python's parser does not report every unreadable text as a TOML error: deep nesting raises
    RecursionError, and a number of 5,000 digits raises ValueError.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"not TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError("TOML cannot be read: it is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"TOML cannot be read: {error}") from None


def _shown(value: object) -> str:
    """Return a short `repr`.

    Python refuses a `repr` of numbers with more than 4,300 digits, which TOML can express in
    hexadecimal.
    """
    try:
        return repr(value)[:MAX_CHARACTERS]
    except (ValueError, RecursionError):
        return f"such a {type(value).__name__}"


@attrs.frozen(kw_only=True)
class SLO:
    """Targets in seconds: `ttft` to the first token, `tpot` for each token after it."""

    ttft: float | None = attrs.field(default=None, validator=_positive)
    tpot: float | None = attrs.field(default=None, validator=_positive)


@attrs.frozen(kw_only=True)
class TenantLimits:
    """One tenant's weight and limits.

    Attributes:
        weight: Share of the capacity under overload, relative to the weights of other tenants.
        concurrency: Maximum number of requests that run and wait; None sets no limit.
        tokens_per_minute: Maximum number of prompt and answer tokens per minute. Unused tokens last
            for one minute. None sets no limit.
    """

    weight: float = 1.0
    concurrency: int | None = None
    tokens_per_minute: float | None = None

    @classmethod
    def of(cls, where: str, table: Any) -> Self:
        """Read the limits from a TOML table. The ConfigurationError names `where`."""
        if not isinstance(table, dict):
            raise ConfigurationError(f"{where} must be a table")
        known = {field.name for field in attrs.fields(cls)}
        for key, value in table.items():
            if key not in known:
                raise ConfigurationError(f"{where} has the unknown key {key!r}; valid keys are {', '.join(sorted(known))}")
            whole = key == "concurrency"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not MIN_NUMBER <= value <= MAX_NUMBER:
                kind = f"whole number from 1 to {MAX_NUMBER:g}" if whole else f"number from {MIN_NUMBER:g} to {MAX_NUMBER:g}"
                raise ConfigurationError(f"{where}.{key} must be a {kind}, not {_shown(value)}")
        return cls(**table)


@attrs.frozen
class TenantTable:
    """The limits of all tenants: `named` ones by name, and `default` for all others.

    Requests of other tenants are refused if `default` is None.
    """

    named: dict[str, TenantLimits] = attrs.field(factory=dict)
    default: TenantLimits | None = attrs.field(factory=TenantLimits)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse TOML. Raises ConfigurationError, whose message names the wrong key or value.

        The text has a table `[tenants.NAME]` for each named tenant and `[default]` for the others.
        With `unknown = "refuse"` it has no `[default]`, and requests of other tenants are refused.
        """
        found = read_toml(text)
        for key in found:
            if key not in ("tenants", "default", "unknown"):
                raise ConfigurationError(f"unknown key {key!r}; valid keys are [tenants.NAME], [default] and unknown")
        if found.get("unknown", "serve") not in ("serve", "refuse"):
            raise ConfigurationError(f'unknown must be "serve" or "refuse", not {_shown(found["unknown"])}')
        tenants = found.get("tenants", {})
        if not isinstance(tenants, dict):
            raise ConfigurationError("tenants must be tables, [tenants.NAME]")
        named = {name: TenantLimits.of(f"tenants.{name}", table) for name, table in tenants.items()}
        if found.get("unknown") == "refuse":
            if "default" in found:
                raise ConfigurationError('[default] and unknown = "refuse" exclude each other: remove one of them')
            return cls(named, None)
        return cls(named, TenantLimits.of("default", found.get("default", {})))

    def of(self, tenant: str) -> TenantLimits | None:
        return self.named.get(tenant, self.default)


@attrs.frozen(kw_only=True)
class AdmissionConfig:
    """How many requests are admitted.

    Attributes:
        max_running: Maximum number of sequences in the engine; 0 sets no limit. None with an SLO
            selects LateGate, which admits as many as can meet the SLO. None without an SLO is the
            engine's batch size plus an eighth, so that successors wait in the engine.
        max_waiting: Maximum number of requests that wait for a slot. None is four times the running
            limit.
        max_wait: Longest wait for a slot in seconds. A request that would wait longer is refused on
            arrival. An SLO with a shorter ttft replaces this bound, except for best-effort
            requests.
        tenant_limit: Maximum number of requests of one tenant, running and waiting; None sets no
            limit.
        tenants: Weights and limits of single tenants; replaces `tenant_limit`.
        policy: "lategate", "fixed" or "unlimited"; None selects the policy that fits `max_running`
            and the SLO.
    """

    max_running: int | None = attrs.field(default=None, validator=_at_least(0))
    max_waiting: int | None = attrs.field(default=None, validator=_at_least(0))
    max_wait: float = attrs.field(default=30.0, validator=_positive)
    tenant_limit: int | None = attrs.field(default=None, validator=_at_least(1))
    tenants: TenantTable | None = None
    policy: str | None = None

    def policy_for(self, slo: SLO) -> str:
        """Return the policy that these settings name, or the one that fits them and the SLO."""
        if self.policy is not None:
            return self.policy
        if self.max_running is None:
            return "fixed" if slo == SLO() else "lategate"
        return "fixed" if self.max_running else "unlimited"

    @property
    def table(self) -> TenantTable:
        """The tenant table, from `tenants` or from `tenant_limit`."""
        return self.tenants or TenantTable(default=TenantLimits(concurrency=self.tenant_limit))


@attrs.frozen(kw_only=True)
class RestartConfig:
    """How the manager handles an engine that dies or hangs.

    Attributes:
        most: Maximum number of restarts within `window` seconds; after one more death the engine
            stays down. 0 disables restarts.
        window: The period in seconds for which a death counts.
        first_pause, longest_pause: Shortest and longest pause in seconds before a restart. The
            pause doubles with every death in the window.
        stall_timeout: Seconds without a step after which an engine that has requests counts as hung
            and is killed. None disables this. The longest step of a healthy engine is a
            compilation, some ten seconds.
        start_timeout: Seconds in which a start must complete, including the first one; then the
            engine's processes are killed. vLLM itself waits without limit for a core that hangs in
            its start.
        start_all: Whether the manager waits at its start for all of several engines. Otherwise it
            accepts requests when the first is up.
    """

    most: int = attrs.field(default=5, validator=_at_least(0))
    window: float = attrs.field(default=600.0, validator=_positive)
    first_pause: float = attrs.field(default=1.0, validator=_positive)
    longest_pause: float = attrs.field(default=60.0, validator=_positive)
    stall_timeout: float | None = attrs.field(default=60.0, validator=_positive)
    start_timeout: float = attrs.field(default=600.0, validator=_positive)
    start_all: bool = True


def _made(kind: type) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigurationError(f"{attribute.name} must be made with {kind.__name__}(...), not {value!r}"[:256])

    return check


@attrs.frozen(kw_only=True)
class ManagerConfig:
    """Settings of an `EngineManager`.

    Attributes:
        slo: Targets for goodput and for the wait in the queue; the default has none.
        admission: How many requests are admitted.
        restart: How the manager handles an engine that dies or hangs.
        max_tokenizing: Maximum number of requests whose prompts are in the engine's tokeniser or
            wait for it; more are refused.
        max_tokens: Maximum number of tokens that a request may generate. None leaves the model's
            context as the bound.
        max_seconds: Longest time that a request may take, including waiting and regardless of its
            own deadline; None sets no bound.
        isolate_tenants: Whether each tenant has its own part of the engine's prefix cache. A tenant
            then cannot tell from the time to a first token what others have asked. Tenants that
            send the same long beginning no longer share its computation.
        cleanup_timeout: Seconds to wait for the engine to confirm an abort; after that the slot is
            released without it.
        drain_timeout: Seconds for which leaving `async with` lets open requests go on.
    """

    slo: SLO = attrs.field(factory=SLO, validator=_made(SLO))
    admission: AdmissionConfig = attrs.field(factory=AdmissionConfig, validator=_made(AdmissionConfig))
    restart: RestartConfig = attrs.field(factory=RestartConfig, validator=_made(RestartConfig))
    max_tokenizing: int = attrs.field(default=1024, validator=_at_least(1))
    max_tokens: int | None = attrs.field(default=None, validator=_at_least(1))
    max_seconds: float | None = attrs.field(default=None, validator=_positive)
    isolate_tenants: bool = False
    cleanup_timeout: float = attrs.field(default=5.0, validator=_positive)
    drain_timeout: float = attrs.field(default=30.0, validator=_positive)

    @classmethod
    def of(cls, value: Self | None) -> Self:
        """Return `value`, or the default config for None. Raises TypeError."""
        if value is None:
            return cls()
        if not isinstance(value, cls):
            raise TypeError(f"config must be a ManagerConfig or None, not {type(value).__name__}")
        return value

    @property
    def limits_steps(self) -> bool:
        """Whether admission limits the tokens in a step of an engine to meet the TPOT target."""
        return self.slo.tpot is not None and self.admission.policy_for(self.slo) == "lategate"

    @property
    def predicts(self) -> bool:
        """Whether admission predicts latency to meet the SLO, instead of using a fixed limit."""
        return self.slo != SLO() and self.admission.policy_for(self.slo) not in ("fixed", "unlimited")
