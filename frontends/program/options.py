"""The command-line options that all servers share."""

import argparse
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frontends.access.control import KEY_VARIABLE, Access
from frontends.net.flush import MAX_HOLD
from frontends.net.receive_budget import LARGEST
from llmserve import SLO, AdmissionConfig, ManagerConfig, RestartConfig
from llmserve.admission import POLICIES
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import parse_engine_args
from llmserve.observability.opentelemetry import traces_endpoint

# The default timeout of OpenAI's client: after that long the client has gone.
MAX_SECONDS = 600.0


def add_options(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--model", default="bundled", help="model to serve: bundled, a local folder or a Hugging Face name (default: %(default)s)"
    )
    engine.add_argument("--served-model-name", metavar="NAME", help="model name in requests and responses (default: the value of --model)")
    engine.add_argument(
        "--engine",
        choices=list(ENGINES),
        default=next(iter(ENGINES)),
        help="inference engine; simulated needs no model (default: %(default)s)",
    )
    engine.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="pass an argument to the engine, such as max_num_seqs=32; repeatable",
    )
    engine.add_argument("--verbose", action="store_true", help="show the engine's log")
    limits = parser.add_argument_group("limits and SLO")
    words = "admission policy (default: lategate with an SLO, fixed without one or with --max-running)"
    limits.add_argument("--policy", choices=list(POLICIES), help=words)
    words = "target time to first token in seconds; requests are admitted only while it can be met"
    limits.add_argument("--slo-ttft", type=float, metavar="S", help=words)
    words = "target time per output token after the first, in seconds; requests are admitted only while it can be met"
    limits.add_argument("--slo-tpot", type=float, metavar="S", help=words)
    words = (
        "maximum number of sequences in the engine, regardless of the SLO; 0 = unlimited (default: the engine's batch size plus 1/8 of it)"
    )
    limits.add_argument("--max-running", type=int, metavar="N", help=words)
    limits.add_argument("--max-waiting", type=int, metavar="N", help="maximum queue length (default: four times --max-running)")
    words = "maximum time in the queue in seconds (default: %(default)s)"
    limits.add_argument("--max-wait", type=float, metavar="S", default=30.0, help=words)
    limits.add_argument("--tenant-limit", type=int, metavar="N", help="maximum number of open requests per tenant (default: no limit)")
    words = "weights and limits of individual tenants (docs/admission.md); replaces --tenant-limit; reloaded on change"
    limits.add_argument("--tenants", type=Path, metavar="FILE.toml", help=words)
    words = "maximum number of output tokens that a request may ask for (default: limited by the context length)"
    limits.add_argument("--max-tokens", type=int, metavar="N", help=words)
    words = "maximum number of engine restarts within ten minutes; after one more engine death the server exits (default: %(default)s)"
    limits.add_argument("--restarts", type=int, metavar="N", default=RestartConfig().most, help=words)
    words = "kill the engine if it has requests but completes no step for this many seconds (default: %(default)s)"
    limits.add_argument("--stall-timeout", type=float, metavar="S", default=RestartConfig().stall_timeout, help=words)
    words = "maximum duration of a request in seconds, including its time in the queue; 0 = unlimited (default: %(default)s)"
    limits.add_argument("--max-seconds", type=float, metavar="S", default=MAX_SECONDS, help=words)
    words = "maximum time in seconds to hold back a stream's tokens while the event loop is overloaded; 0 = never (default: %(default)s)"
    limits.add_argument("--max-hold", type=float, metavar="S", default=MAX_HOLD, help=words)
    words = "seconds that open requests get to finish after SIGTERM (default: %(default)s)"
    limits.add_argument("--drain-timeout", type=float, metavar="S", default=30.0, help=words)
    words = (
        "seconds to keep serving after SIGTERM before the drain begins; readiness returns 503 and responses close their connections, so "
        "that load balancers move new clients elsewhere (default: %(default)s)"
    )
    limits.add_argument("--drain-delay", type=seconds, metavar="S", default=0.0, help=words)
    watching = parser.add_argument_group("observability")
    words = "send metrics and a trace of each request to this OpenTelemetry collector (OTLP over HTTP), such as http://localhost:4318"
    watching.add_argument("--otlp-endpoint", type=_http_url, metavar="URL", help=words)
    words = "serve GET /health/generate, which generates a token to test the engine, at most once every S seconds (default: no such route)"
    watching.add_argument("--generate-check", type=_interval, metavar="S", help=words)
    access = parser.add_argument_group("access control")
    words = (
        "require one of the API keys in this file (create them with `keys add`; reloaded on change); "
        f"the environment variable {KEY_VARIABLE} sets a single key instead"
    )
    access.add_argument("--api-keys", type=Path, metavar="FILE.toml", help=words)
    access.add_argument("--tls-cert", type=Path, metavar="FILE", help="serve TLS with this certificate chain in PEM format")
    access.add_argument("--tls-key", type=Path, metavar="FILE", help="private key of --tls-cert in PEM format")
    access.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="require client certificates issued by these authorities")
    words = "maximum number of connections per process (default: the limit of open files minus 64)"
    access.add_argument("--max-connections", type=count, metavar="N", help=words)
    words = "maximum number of connections per process from one address; loopback is exempt (default: a quarter of --max-connections)"
    access.add_argument("--max-peer-connections", type=count, metavar="N", help=words)
    words = "maximum total size in bytes of incomplete request bodies and frames per process (default: 64 MiB)"
    access.add_argument("--max-incomplete-bytes", type=_budget, metavar="N", help=words)
    words = "allow listening on a non-loopback address without authentication, or with an engine version that has known vulnerabilities"
    access.add_argument("--insecure", action="store_true", help=words)


def count(text: str) -> int:
    """Parse an integer of at least 1. Raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def seconds(text: str) -> float:
    """Parse a number of seconds of at least 0. Raises ArgumentTypeError."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of seconds: use 0 or more")
    return number


def _interval(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of seconds: use a number above 0")
    return number


def _budget(text: str) -> int:
    number = int(text)
    if number < LARGEST:
        raise argparse.ArgumentTypeError(f"{number} is less than the maximum size of one body or frame, {LARGEST} bytes")
    return number


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not an http:// or https:// URL")
    return text


def engine_args(options: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's arguments.

    Raises ConfigurationError, which names the invalid argument.
    """
    endpoint = traces_endpoint(options.otlp_endpoint) if options.otlp_endpoint else None
    ours = ENGINES[options.engine].server_args(verbose=options.verbose, trace_endpoint=endpoint)
    return ours | parse_engine_args(options.engine_arg)


def manager_config(options: argparse.Namespace) -> ManagerConfig:
    """Return the manager's configuration.

    Raises ConfigurationError, which names the invalid value.
    """
    access = Access.open(options)
    return ManagerConfig(
        slo=SLO(ttft=options.slo_ttft, tpot=options.slo_tpot),
        admission=AdmissionConfig(
            max_running=options.max_running,
            max_waiting=options.max_waiting,
            max_wait=options.max_wait,
            tenant_limit=options.tenant_limit,
            tenants=access.table,
            policy=options.policy,
        ),
        restart=RestartConfig(most=options.restarts, stall_timeout=options.stall_timeout),
        max_tokens=options.max_tokens,
        max_seconds=options.max_seconds or None,
        # With API keys, tenants are authenticated and must not share cached prefixes.
        isolate_tenants=access.keys is not None,
        drain_timeout=options.drain_timeout,
    )
