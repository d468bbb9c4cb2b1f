"""The arguments of a cluster: the options that all servers share, and the size of the cluster."""

import argparse
import shlex
from collections.abc import Mapping, Sequence

from frontends.program.options import add_options, count, engine_args
from llmserve import ConfigurationError
from llmserve.engines import ENGINES

# The option that takes several values in one key=value argument.
REPEATED = "engine-arg"

# Options of listeners, which in a cluster are Ray Serve's.
NOT_HERE = ("tls_cert", "tls_key", "tls_client_ca", "max_connections", "max_peer_connections", "insecure", "drain_delay")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it raises, as the original does in its own way
        raise ConfigurationError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Raises ConfigurationError, which names the invalid argument."""
    parser = _Parser(prog="serve run frontends.ray_app:build", add_help=False, allow_abbrev=False)
    add_options(parser)
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--replicas", type=count, default=1, metavar="N", help="minimum number of engines (default: %(default)s)")
    cluster.add_argument("--max-replicas", type=count, metavar="N", help="maximum number of engines (default: --replicas)")
    words = "number of ingress processes per host (default: %(default)s)"
    cluster.add_argument("--ingresses", type=count, default=1, metavar="N", help=words)
    words = "CPUs that Ray reserves for each engine (default: %(default)s)"
    cluster.add_argument("--replica-cpus", type=float, default=1.0, metavar="N", help=words)
    words = "GPUs that Ray reserves for each engine (default: as many as its parallelism needs)"
    cluster.add_argument("--replica-gpus", type=float, metavar="N", help=words)
    words = "seconds of lower load before engines are removed (default: %(default)s)"
    cluster.add_argument("--scale-down-delay", type=float, default=300.0, metavar="S", help=words)
    words = "seconds of higher load before engines are added (default: %(default)s)"
    cluster.add_argument("--scale-up-delay", type=float, default=5.0, metavar="S", help=words)
    options = parser.parse_args(arguments)
    options.max_replicas = options.max_replicas or options.replicas
    if options.max_replicas < options.replicas:
        raise ConfigurationError(f"--max-replicas {options.max_replicas} is less than --replicas {options.replicas}")
    for name in NOT_HERE:
        if getattr(options, name):
            raise ConfigurationError(f"--{name.replace('_', '-')} is not available on Ray Serve, whose proxies accept the connections")
    if options.replica_gpus is None:
        options.replica_gpus = ENGINES[options.engine].gpus(engine_args(options))
    return options


def from_words(words: Mapping[str, str]) -> list[str]:
    """Return the key=value arguments of `serve run` as a command line.

    engine_arg="a=1 b=2" becomes --engine-arg a=1 --engine-arg b=2, and verbose=true becomes
    --verbose.
    """
    found: list[str] = []
    for key, value in words.items():
        name = key.replace("_", "-")
        values = shlex.split(str(value)) if name == REPEATED else [str(value)]
        for one in values:
            found += [f"--{name}"] if one.lower() == "true" else [f"--{name}", one]
    return found
