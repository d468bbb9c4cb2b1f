"""The arguments of a cluster: those of every server, and how many of it there are."""

import argparse
import shlex
from collections.abc import Mapping, Sequence

from frontends.program.options import add_options, count, engine_args
from llmserve import ConfigurationError
from llmserve.engines import ENGINES

# Given as one argument with several values.
REPEATED = "engine-arg"

# What says how to listen, which is not ours to do here.
NOT_HERE = ("tls_cert", "tls_key", "tls_client_ca", "max_connections", "max_peer_connections", "insecure", "drain_delay")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it raises, as the original does in its own way
        raise ConfigurationError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigurationError, naming the argument that is wrong."""
    parser = _Parser(prog="serve run frontends.ray_app:build", add_help=False, allow_abbrev=False)
    add_options(parser)
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--replicas", type=count, default=1, metavar="N", help="engines, at least (default: %(default)s)")
    cluster.add_argument("--max-replicas", type=count, metavar="N", help="engines, at most (default: --replicas)")
    words = "processes before them, on each host (default: %(default)s)"
    cluster.add_argument("--ingresses", type=count, default=1, metavar="N", help=words)
    cluster.add_argument("--replica-cpus", type=float, default=1.0, metavar="N", help="that Ray reserves for each (default: %(default)s)")
    cluster.add_argument("--replica-gpus", type=float, metavar="N", help="likewise (default: what the engine's parallelism takes)")
    words = "seconds of less load before there are fewer of them (default: %(default)s)"
    cluster.add_argument("--scale-down-delay", type=float, default=300.0, metavar="S", help=words)
    words = "seconds of more load before there are more (default: %(default)s)"
    cluster.add_argument("--scale-up-delay", type=float, default=5.0, metavar="S", help=words)
    options = parser.parse_args(arguments)
    options.max_replicas = options.max_replicas or options.replicas
    if options.max_replicas < options.replicas:
        raise ConfigurationError(f"--max-replicas {options.max_replicas} is less than --replicas {options.replicas}")
    for name in NOT_HERE:
        if getattr(options, name):
            raise ConfigurationError(f"--{name.replace('_', '-')} is for servers of our own: connections here are Ray Serve's proxies'")
    if options.replica_gpus is None:
        options.replica_gpus = ENGINES[options.engine].gpus(engine_args(options))
    return options


def from_words(words: Mapping[str, str]) -> list[str]:
    """`serve run`'s key=value arguments as a command line: engine_arg="a=1 b=2" is --engine-arg a=1 --engine-arg b=2, and insecure=true is
    --insecure."""
    found: list[str] = []
    for key, value in words.items():
        name = key.replace("_", "-")
        values = shlex.split(str(value)) if name == REPEATED else [str(value)]
        for one in values:
            found += [f"--{name}"] if one.lower() == "true" else [f"--{name}", one]
    return found
