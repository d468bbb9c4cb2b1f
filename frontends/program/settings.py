"""The settings that all servers share."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from frontends.access.control import Access
from frontends.access.settings import AccessSettings
from frontends.logs.operator_log import LogSettings
from frontends.net.flush import MAX_HOLD
from frontends.options.definitions import group, option
from frontends.options.parsers import AUTO, auto_or_count, seconds
from llmserve import SLO, AdmissionConfig, ManagerConfig, RestartConfig
from llmserve.admission import POLICIES, build_admission
from llmserve.engines import ENGINES
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm.args import parse_engine_args
from llmserve.observability.opentelemetry import traces_endpoint

# The default timeout of OpenAI's client: after that long the client has gone.
MAX_SECONDS = 600.0


def _interval(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of seconds: use a number above 0")
    return number


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not an http:// or https:// URL")
    return text


@attrs.frozen(kw_only=True)
class EngineSettings:
    """The model and its engine."""

    model: str = option(
        "bundled", "model to serve: bundled, bundled-embedding, a local folder or a Hugging Face name (default: %(default)s)"
    )
    served_model_name: str | None = option(None, "model name in requests and responses (default: the value of --model)", metavar="NAME")
    kind: str = option(
        next(iter(ENGINES)), "inference engine; simulated needs no model (default: %(default)s)", choices=ENGINES, name="engine"
    )
    args: tuple[str, ...] = option(
        (), "pass an argument to the engine, such as max_num_seqs=32; repeatable", metavar="KEY=VALUE", repeat=True, name="engine_arg"
    )
    count: str = option(
        "1",
        "number of engines, which share the GPUs evenly; auto = as many as the GPUs hold without sharing one (default: %(default)s)",
        metavar="N",
        parse=auto_or_count("engines"),
        name="engines",
    )
    verbose: bool = option(False, "show the engine's log")

    def number(self, args: Mapping[str, Any]) -> int:
        """Return the number of engines. `args` are the engine's arguments."""
        return self.spec.engines_that_fit(args) if self.count == AUTO else int(self.count)

    @property
    def name(self) -> str:
        """The model's name in requests and responses."""
        return self.served_model_name or self.model

    @property
    def spec(self) -> EngineSpec:
        return ENGINES[self.kind]


@attrs.frozen(kw_only=True)
class LimitSettings:
    """Limits, the SLO, and the times of an end."""

    policy: str | None = option(
        None, "admission policy (default: lategate with an SLO, fixed without one or with --max-running)", choices=POLICIES
    )
    slo_ttft: float | None = option(
        None,
        "target time to first token in seconds; requests are admitted only while it can be met",
        metavar="S",
        reloads=True,
    )
    slo_tpot: float | None = option(
        None,
        "target time per output token after the first, in seconds; requests are admitted only while it can be met",
        metavar="S",
        reloads=True,
    )
    max_running: int | None = option(
        None,
        "maximum number of sequences in the engine, regardless of the SLO; 0 = unlimited (default: the engine's batch size plus 1/8 of it)",
        metavar="N",
        reloads=True,
    )
    max_waiting: int | None = option(None, "maximum queue length (default: four times --max-running)", metavar="N", reloads=True)
    max_wait: float = option(30.0, "maximum time in the queue in seconds (default: %(default)s)", metavar="S", reloads=True)
    tenant_limit: int | None = option(None, "maximum number of open requests per tenant (default: no limit)", metavar="N", reloads=True)
    tenants: Path | None = option(
        None,
        "weights and limits of individual tenants (docs/admission.md); replaces --tenant-limit; reloaded on change",
        metavar="FILE.toml",
    )
    max_tokens: int | None = option(
        None,
        "maximum number of output tokens that a request may ask for (default: limited by the context length)",
        metavar="N",
        reloads=True,
    )
    restarts: int = option(
        RestartConfig().most,
        "maximum number of restarts of an engine within ten minutes; after one more death it stays down, and without any engine the "
        "server exits (default: %(default)s)",
        metavar="N",
        reloads=True,
    )
    start_timeout: float = option(
        RestartConfig().start_timeout,
        "seconds in which the engine must load the model, at the first start and at each restart (default: %(default)s)",
        metavar="S",
        parse=_interval,
    )
    stall_timeout: float | None = option(
        RestartConfig().stall_timeout,
        "kill the engine if it has requests but completes no step for this many seconds (default: %(default)s)",
        metavar="S",
        reloads=True,
    )
    max_seconds: float = option(
        MAX_SECONDS,
        "maximum duration of a request in seconds, including its time in the queue; 0 = unlimited (default: %(default)s)",
        metavar="S",
        reloads=True,
    )
    max_hold: float = option(
        MAX_HOLD,
        "maximum time in seconds to hold back a stream's tokens while the event loop is overloaded; 0 = never (default: %(default)s)",
        metavar="S",
    )
    drain_timeout: float = option(
        30.0, "seconds that open requests get to finish after SIGTERM (default: %(default)s)", metavar="S", reloads=True
    )
    drain_delay: float = option(
        0.0,
        "seconds to keep serving after SIGTERM before the drain begins; readiness returns 503 and responses close their connections, so "
        "that load balancers move new clients elsewhere (default: %(default)s)",
        metavar="S",
        parse=seconds,
        reloads=True,
    )


@attrs.frozen(kw_only=True)
class ObservabilitySettings:
    """What a server reports about itself."""

    otlp_endpoint: str | None = option(
        None,
        "send metrics and a trace of each request to this OpenTelemetry collector (OTLP over HTTP), such as http://localhost:4318",
        metavar="URL",
        parse=_http_url,
    )
    generate_check: float | None = option(
        None,
        "serve GET /health/generate, which generates a token to test the engine, at most once every S seconds (default: no such route)",
        metavar="S",
        parse=_interval,
    )
    per_request_metrics: bool = option(
        False, "add the times of each request of one sequence to its answer over HTTP, as `metrics`, for completions and chats"
    )
    force_include_usage: bool = option(
        False, "add the usage so far to every event of a stream of completions or chats over HTTP, also for clients that do not ask"
    )


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The settings of every server. Each kind of server adds its own in a subclass."""

    engine: EngineSettings = group(EngineSettings, "engine")
    limits: LimitSettings = group(LimitSettings, "limits and SLO")
    observability: ObservabilitySettings = group(ObservabilitySettings, "observability")
    access: AccessSettings = group(AccessSettings, "access control")

    def engine_args(self) -> dict[str, Any]:
        """Return the engine's arguments.

        Raises ConfigurationError, which names the invalid argument.
        """
        endpoint = self.observability.otlp_endpoint
        traces = traces_endpoint(endpoint) if endpoint else None
        ours = self.engine.spec.server_args(verbose=self.engine.verbose, trace_endpoint=traces)
        return ours | parse_engine_args(self.engine.args)

    def open_access(self) -> Access:
        """Read the files of keys and tenants, and the environment. Raises ConfigurationError."""
        return Access.open(self.access.api_keys, self.limits.tenants, self.limits.tenant_limit)

    def check(self, access: Access) -> None:
        """Check what a start checks without an engine. Raises ConfigurationError."""
        self.engine_args()
        config = self.manager_config(access)
        # The size of the batch decides about no error.
        build_admission(config.admission, config.slo, max_num_seqs=1)

    def manager_config(self, access: Access) -> ManagerConfig:
        """Return the manager's configuration.

        Raises ConfigurationError, which names the invalid value.
        """
        limits = self.limits
        return ManagerConfig(
            slo=SLO(ttft=limits.slo_ttft, tpot=limits.slo_tpot),
            admission=AdmissionConfig(
                max_running=limits.max_running,
                max_waiting=limits.max_waiting,
                max_wait=limits.max_wait,
                tenant_limit=limits.tenant_limit,
                tenants=access.table,
                policy=limits.policy,
            ),
            restart=RestartConfig(most=limits.restarts, stall_timeout=limits.stall_timeout, start_timeout=limits.start_timeout),
            max_tokens=limits.max_tokens,
            max_seconds=limits.max_seconds or None,
            # With API keys, tenants are authenticated and must not share cached prefixes.
            isolate_tenants=access.keys is not None,
            drain_timeout=limits.drain_timeout,
        )


@attrs.frozen(kw_only=True)
class ProgramSettings(ServerSettings):
    """The settings of a server that is a program of its own."""

    config: Path | None = option(
        None,
        "read options from this file, by their names; the command line and variables such as LLMSERVE_MAX_RUNNING take precedence "
        "(`llmserve config` writes such a file)",
        metavar="FILE.toml",
    )
    log: LogSettings = group(LogSettings, "log on standard error")
