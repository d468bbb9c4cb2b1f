"""What an operator decides. Frozen, and checked when made: a wrong value is a `ConfigurationError` that names it."""

import math
import tomllib
from typing import Any, Self

import attrs

from llmserve.errors import ConfigurationError

# Of a tenant's limits: between them no quotient or sum that admission makes is 0 or infinite.
MIN_NUMBER, MAX_NUMBER = 1e-6, 1e15
# Of a wrong value in an error.
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
    """Raises ConfigurationError, also for what Python's parser does not refuse as TOML: depth without end, and numbers of 5,000 digits."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"not TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError("not TOML that can be read: it is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"not TOML that can be read: {error}") from None


def _shown(value: object) -> str:
    """Python refuses to print a number of more than 4,300 digits, which TOML can say in hexadecimal."""
    try:
        return repr(value)[:MAX_CHARACTERS]
    except (ValueError, RecursionError):
        return f"such a {type(value).__name__}"


@attrs.frozen(kw_only=True)
class SLO:
    """What a client was promised, in seconds: the time to the first token, and for each token after it."""

    ttft: float | None = attrs.field(default=None, validator=_positive)
    tpot: float | None = attrs.field(default=None, validator=_positive)


@attrs.frozen(kw_only=True)
class TenantLimits:
    """One tenant's share and bounds.

    Attributes:
        weight: of the service when there is not enough for all, against others' weights.
        concurrency: requests at once, running and waiting; None is without bound.
        tokens_per_minute: prompt and answer together; unused ones are saved for a minute. None is without bound.
    """

    weight: float = 1.0
    concurrency: int | None = None
    tokens_per_minute: float | None = None

    @classmethod
    def of(cls, where: str, table: Any) -> Self:
        """From a table of TOML. Raises ConfigurationError, naming what is wrong `where`."""
        if not isinstance(table, dict):
            raise ConfigurationError(f"{where} must be a table")
        known = {field.name for field in attrs.fields(cls)}
        for key, value in table.items():
            if key not in known:
                raise ConfigurationError(f"{where} has the unknown key {key!r}; there are {', '.join(sorted(known))}")
            whole = key == "concurrency"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not MIN_NUMBER <= value <= MAX_NUMBER:
                kind = f"whole number from 1 to {MAX_NUMBER:g}" if whole else f"number from {MIN_NUMBER:g} to {MAX_NUMBER:g}"
                raise ConfigurationError(f"{where}.{key} must be a {kind}, not {_shown(value)}")
        return cls(**table)


@attrs.frozen
class TenantTable:
    """All tenants' limits: those that are named, and for all others `default`; None refuses them."""

    named: dict[str, TenantLimits] = attrs.field(factory=dict)
    default: TenantLimits | None = attrs.field(factory=TenantLimits)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From TOML: a table `[tenants.NAME]` for each, `[default]` for the rest, and `unknown = "refuse"` to have no rest.

        Raises ConfigurationError, naming what is wrong.
        """
        found = read_toml(text)
        for key in found:
            if key not in ("tenants", "default", "unknown"):
                raise ConfigurationError(f"unknown key {key!r}; there are [tenants.NAME], [default] and unknown")
        if found.get("unknown", "serve") not in ("serve", "refuse"):
            raise ConfigurationError(f'unknown must be "serve" or "refuse", not {_shown(found["unknown"])}')
        tenants = found.get("tenants", {})
        if not isinstance(tenants, dict):
            raise ConfigurationError("tenants must be tables, [tenants.NAME]")
        named = {name: TenantLimits.of(f"tenants.{name}", table) for name, table in tenants.items()}
        if found.get("unknown") == "refuse":
            if "default" in found:
                raise ConfigurationError('[default] is for tenants that unknown = "refuse" turns away: leave one of them out')
            return cls(named, None)
        return cls(named, TenantLimits.of("default", found.get("default", {})))

    def of(self, tenant: str) -> TenantLimits | None:
        return self.named.get(tenant, self.default)


@attrs.frozen(kw_only=True)
class AdmissionConfig:
    """How much work is taken on.

    Attributes:
        max_running: sequences in the engine at once. None leaves it to LateGate where there is an SLO, which lets in as many
            as keep it; without one it asks the engine: as many as it batches and an eighth more, so that a successor is at
            hand when one finishes. 0 sets no limit at all.
        max_waiting: requests that may wait for a slot; None is four times as many as may run.
        max_wait: longest wait for a slot in seconds. A request that is bound to wait longer is refused on arrival. With
            an SLO its ttft is the bound, where it is shorter, but for those that asked to be served late rather than not.
        tenant_limit: requests of one tenant, running and waiting; None sets no limit.
        tenants: weights and limits of single tenants, in place of `tenant_limit`.
    """

    max_running: int | None = attrs.field(default=None, validator=_at_least(0))
    max_waiting: int | None = attrs.field(default=None, validator=_at_least(0))
    max_wait: float = attrs.field(default=30.0, validator=_positive)
    tenant_limit: int | None = attrs.field(default=None, validator=_at_least(1))
    tenants: TenantTable | None = None

    @property
    def table(self) -> TenantTable:
        """Of tenants, whichever of the two ways it is said in."""
        return self.tenants or TenantTable(default=TenantLimits(concurrency=self.tenant_limit))


@attrs.frozen(kw_only=True)
class RestartConfig:
    """What is done about an engine that dies, or that hangs.

    Attributes:
        most: restarts within `window` seconds; one death more, and it stays down. 0 never starts it again.
        first_pause, longest_pause: seconds before a restart; from the one to the other they double with every death in the window.
        stall_timeout: an engine that has requests and has made no step for so many seconds is taken for hung, and killed. None
            waits for ever. The longest step that is no fault is a compilation, of some ten seconds.
        start_timeout: seconds in which a start must be done, the first one too; then its processes are killed. vLLM itself waits for a
            core that hangs in its start for ever.
    """

    most: int = attrs.field(default=5, validator=_at_least(0))
    window: float = attrs.field(default=600.0, validator=_positive)
    first_pause: float = attrs.field(default=1.0, validator=_positive)
    longest_pause: float = attrs.field(default=60.0, validator=_positive)
    stall_timeout: float | None = attrs.field(default=60.0, validator=_positive)
    start_timeout: float = attrs.field(default=600.0, validator=_positive)


def _made(kind: type) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigurationError(f"{attribute.name} must be made with {kind.__name__}(...), not {value!r}"[:256])

    return check


@attrs.frozen(kw_only=True)
class ManagerConfig:
    """How an `EngineManager` behaves.

    Attributes:
        restart: what is done when the engine dies.
        slo: counts goodput and bounds the wait; None promises nothing.
        max_tokenizing: requests whose prompts may be in the engine's tokeniser, or wait for it; more are refused.
        max_tokens: most tokens that any request may generate; None leaves the model's context as the bound.
        max_seconds: longest that any request may take, waiting included, whatever its own deadline; None sets no bound.
        isolate_tenants: no tenant finds in the engine's prefix cache what another one has put there, and so cannot tell from the time to
            a first token what others have asked. Tenants that send the same long beginning no longer share its work.
        cleanup_timeout: longest time for the engine to confirm an abort, in seconds, before its slot is given on anyway.
        drain_timeout: how long leaving `async with` lets running requests go on, in seconds.
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
        """What a manager is given, None being the defaults. Raises TypeError."""
        if value is None:
            return cls()
        if not isinstance(value, cls):
            raise TypeError(f"config must be a ManagerConfig or None, not {type(value).__name__}")
        return value

    @property
    def predicts(self) -> bool:
        """Whether admission goes by what it predicts, to keep the SLO, and not by a number."""
        return self.slo != SLO() and self.admission.max_running is None
