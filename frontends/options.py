"""The command line that every server shares: engine, limits and promises."""

import argparse
from pathlib import Path
from typing import Any

from frontends.tenants import read_tenants
from llmserve import SLO, AdmissionConfig, ManagerConfig, RestartConfig
from llmserve.engines import ENGINES
from llmserve.engines.vllm_args import parse_engine_args


def add_options(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine")
    engine.add_argument("--model", default="bundled", help="bundled, a folder, or a hub name (default: %(default)s)")
    engine.add_argument("--served-model-name", metavar="NAME", help="the name that clients ask for (default: what --model says)")
    engine.add_argument("--engine", choices=ENGINES, default="vllm", help="default: %(default)s")
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
    words = "listen where other machines can connect although nobody is asked who they are, or the engine is known to be vulnerable"
    limits.add_argument("--insecure", action="store_true", help=words)
    limits.add_argument("--drain-timeout", type=float, metavar="S", default=30.0, help="time to finish on SIGTERM (default: %(default)s)")


def engine_args(options: argparse.Namespace) -> dict[str, Any]:
    """Raises ConfigurationError, naming the argument that is wrong."""
    quiet = {"use_tqdm_on_load": False} if options.engine == "vllm" and not options.verbose else {}
    return quiet | parse_engine_args(options.engine_arg)


def manager_config(options: argparse.Namespace) -> ManagerConfig:
    """Raises ConfigurationError, naming the value that is wrong."""
    return ManagerConfig(
        slo=SLO(ttft=options.slo_ttft, tpot=options.slo_tpot),
        admission=AdmissionConfig(
            max_running=options.max_running,
            max_waiting=options.max_waiting,
            max_wait=options.max_wait,
            tenant_limit=options.tenant_limit,
            tenants=read_tenants(options.tenants) if options.tenants else None,
        ),
        restart=RestartConfig(most=options.restarts, stall_timeout=options.stall_timeout),
        max_tokens=options.max_tokens,
        drain_timeout=options.drain_timeout,
    )
