"""The command line that every server shares: engine, limits and promises."""

import argparse
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frontends.access.control import KEY_VARIABLE, Access
from frontends.net.flush import MAX_HOLD
from frontends.net.receive_budget import LARGEST
from llmserve import SLO, AdmissionConfig, ManagerConfig, RestartConfig
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import parse_engine_args
from llmserve.observability.opentelemetry import traces_endpoint

# What OpenAI's client waits by default: whoever is answered later has gone.
MAX_SECONDS = 600.0


def add_options(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine")
    engine.add_argument("--model", default="bundled", help="bundled, a folder, or a hub name (default: %(default)s)")
    engine.add_argument("--served-model-name", metavar="NAME", help="the name that clients ask for (default: what --model says)")
    engine.add_argument("--engine", choices=list(ENGINES), default=next(iter(ENGINES)), help="default: %(default)s")
    engine.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any argument of the engine, such as max_num_seqs=32; repeat it",
    )
    engine.add_argument("--verbose", action="store_true", help="show the engine's own log")
    limits = parser.add_argument_group("limits and promises")
    limits.add_argument("--slo-ttft", type=float, metavar="S", help="promised seconds to the first token: as many are let in as keep it")
    limits.add_argument("--slo-tpot", type=float, metavar="S", help="promised seconds for each further token, likewise")
    words = "sequences in the engine at once, whatever is promised; 0: no limit (default: what it batches, and 1/8)"
    limits.add_argument("--max-running", type=int, metavar="N", help=words)
    limits.add_argument("--max-waiting", type=int, metavar="N", help="requests that may wait (default: four times --max-running)")
    limits.add_argument("--max-wait", type=float, metavar="S", default=30.0, help="longest wait for a slot (default: %(default)s)")
    limits.add_argument("--tenant-limit", type=int, metavar="N", help="requests of one user at once (default: no limit)")
    words = "weights and limits of single tenants (docs/admission.md), in place of --tenant-limit; read again when it changes"
    limits.add_argument("--tenants", type=Path, metavar="FILE.toml", help=words)
    limits.add_argument(
        "--max-tokens", type=int, metavar="N", help="most tokens that a request may ask for (default: what the context holds)"
    )
    words = "restarts of an engine that died, within ten minutes; one death more ends the server (default: %(default)s)"
    limits.add_argument("--restarts", type=int, metavar="N", default=RestartConfig().most, help=words)
    words = "an engine that has requests and makes no step for so long is killed (default: %(default)s)"
    limits.add_argument("--stall-timeout", type=float, metavar="S", default=RestartConfig().stall_timeout, help=words)
    words = "longest that any request may take, waiting included; 0: no bound (default: %(default)s)"
    limits.add_argument("--max-seconds", type=float, metavar="S", default=MAX_SECONDS, help=words)
    words = "longest time in seconds to hold a stream's tokens back while the event loop is overloaded; 0 = never (default: %(default)s)"
    limits.add_argument("--max-hold", type=float, metavar="S", default=MAX_HOLD, help=words)
    limits.add_argument("--drain-timeout", type=float, metavar="S", default=30.0, help="time to finish on SIGTERM (default: %(default)s)")
    words = (
        "on SIGTERM go on for so long before the drain: requests are served, readiness is 503 and answers close their connections, so that "
        "balancers send new clients elsewhere (default: %(default)s)"
    )
    limits.add_argument("--drain-delay", type=seconds, metavar="S", default=0.0, help=words)
    watching = parser.add_argument_group("watching it")
    words = "send a trace of each request, and metrics, to this OpenTelemetry collector by OTLP over HTTP, such as http://localhost:4318"
    watching.add_argument("--otlp-endpoint", type=_http_url, metavar="URL", help=words)
    words = "serve GET /health/generate, which sends a token through the engine at most every S seconds (default: no such route)"
    watching.add_argument("--generate-check", type=_interval, metavar="S", help=words)
    access = parser.add_argument_group("who may use it")
    words = f"only who shows one of these keys (`keys add` makes them; read again when it changes); {KEY_VARIABLE} holds a single one"
    access.add_argument("--api-keys", type=Path, metavar="FILE.toml", help=words)
    access.add_argument("--tls-cert", type=Path, metavar="FILE", help="serve TLS with this certificate chain, as PEM")
    access.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    access.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="only clients with a certificate of these authorities")
    words = "connections at once, of each process (default: what it may open files, less 64)"
    access.add_argument("--max-connections", type=count, metavar="N", help=words)
    words = "of them from one address, other than this machine's (default: a quarter)"
    access.add_argument("--max-peer-connections", type=count, metavar="N", help=words)
    words = "bytes of request bodies and frames that have not arrived completely, together, of each process (default: 64 MiB)"
    access.add_argument("--max-incomplete-bytes", type=_budget, metavar="N", help=words)
    words = "listen where other machines can connect although nobody is asked who they are, or the engine is known to be vulnerable"
    access.add_argument("--insecure", action="store_true", help=words)


def count(text: str) -> int:
    """An argument's value; raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def seconds(text: str) -> float:
    """An argument's value, 0 or more; raises ArgumentTypeError."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: choose 0 or more")
    return number


def _interval(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return number


def _budget(text: str) -> int:
    number = int(text)
    if number < LARGEST:
        raise argparse.ArgumentTypeError(f"{number} is less than the largest body or frame, {LARGEST} bytes")
    return number


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no http:// or https:// URL")
    return text


def engine_args(options: argparse.Namespace) -> dict[str, Any]:
    """Raises ConfigurationError, naming the argument that is wrong."""
    endpoint = traces_endpoint(options.otlp_endpoint) if options.otlp_endpoint else None
    ours = ENGINES[options.engine].server_args(verbose=options.verbose, trace_endpoint=endpoint)
    return ours | parse_engine_args(options.engine_arg)


def manager_config(options: argparse.Namespace) -> ManagerConfig:
    """Raises ConfigurationError, naming the value that is wrong."""
    access = Access.open(options)
    return ManagerConfig(
        slo=SLO(ttft=options.slo_ttft, tpot=options.slo_tpot),
        admission=AdmissionConfig(
            max_running=options.max_running,
            max_waiting=options.max_waiting,
            max_wait=options.max_wait,
            tenant_limit=options.tenant_limit,
            tenants=access.table,
        ),
        restart=RestartConfig(most=options.restarts, stall_timeout=options.stall_timeout),
        max_tokens=options.max_tokens,
        max_seconds=options.max_seconds or None,
        # Where callers are who they say they are, what they say to the model is theirs too.
        isolate_tenants=access.keys is not None,
        drain_timeout=options.drain_timeout,
    )
