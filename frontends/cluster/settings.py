"""The settings of a cluster: those that all servers share, and the size of the cluster."""

import argparse
import shlex
from collections.abc import Mapping, Sequence

import attrs

from frontends.http.settings import LOOPBACK, parse_port
from frontends.net.listeners import without_brackets
from frontends.options.command_line import read
from frontends.options.definitions import group, key_of, make, option
from frontends.options.parsers import AUTO, count
from frontends.program.settings import ServerSettings
from llmserve import ConfigurationError

# The option that takes several values in one key=value argument.
REPEATED = "engine-arg"

# Options that Ray Serve's proxy, which reaches the ingresses too, cannot follow.
NOT_HERE = ("tls_client_ca", "drain_delay")


@attrs.frozen(kw_only=True)
class ClusterSettings:
    """The size of a cluster. Its command line has no `--help`; docs/scaling.md describes it."""

    replicas: int = option(1, "minimum number of replicas (default: %(default)s)", metavar="N", parse=count)
    max_replicas: int | None = option(None, "maximum number of replicas (default: --replicas)", metavar="N", parse=count)
    ingresses: int = option(1, "number of ingress processes per host (default: %(default)s)", metavar="N", parse=count)
    hosts: tuple[str, ...] = option(
        (LOOPBACK,),
        f"address or host name on which ingresses listen; repeatable (default: {LOOPBACK})",
        parse=without_brackets,
        repeat=True,
        name="host",
    )
    port: int = option(8100, "port on which ingresses listen (default: %(default)s)", parse=parse_port)
    workers: int = option(1, "number of processes of each replica that serve HTTP (default: %(default)s)", metavar="N", parse=count)
    replica_cpus: float = option(1.0, "CPUs that Ray reserves for each replica (default: %(default)s)", metavar="N")
    replica_gpus: float | None = option(
        None, "GPUs that Ray reserves for each replica (default: as many as its engines and their parallelism need)", metavar="N"
    )
    scale_down_delay: float = option(300.0, "seconds of lower load before replicas are removed (default: %(default)s)", metavar="S")
    scale_up_delay: float = option(5.0, "seconds of higher load before replicas are added (default: %(default)s)", metavar="S")

    @property
    def most(self) -> int:
        """The maximum number of replicas."""
        return self.max_replicas or self.replicas


@attrs.frozen(kw_only=True)
class ClusterServerSettings(ServerSettings):
    """The settings of an application on Ray Serve."""

    cluster: ClusterSettings = group(ClusterSettings, "cluster")

    @property
    def gpus(self) -> float:
        """The number of GPUs of one replica. Raises ConfigurationError."""
        given, args = self.cluster.replica_gpus, self.engine_args()
        return self.engine.number(args) * self.engine.spec.gpus(args) if given is None else given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it raises, as the original does in its own way
        raise ConfigurationError(message)


def read_settings(arguments: Sequence[str]) -> ClusterServerSettings:
    """Read the settings from a command line. Raises ConfigurationError, which names the invalid argument."""
    parser = _Parser(prog="serve run frontends.ray_app:build", add_help=False, allow_abbrev=False)
    given = read(parser, ClusterServerSettings, arguments)
    settings = make(ClusterServerSettings, given)
    cluster = settings.cluster
    if cluster.most < cluster.replicas:
        raise ConfigurationError(f"--max-replicas {cluster.max_replicas} is less than --replicas {cluster.replicas}")
    if settings.engine.count == AUTO:
        raise ConfigurationError(
            "--engines auto is not available on Ray Serve: the GPUs of a replica follow from the number of its engines"
        )
    for name in NOT_HERE:
        if given.get(name):
            raise ConfigurationError(f"--{key_of(name)} is not available on Ray Serve, whose proxy also accepts connections")
    return settings


def from_words(words: Mapping[str, str]) -> list[str]:
    """Return the key=value arguments of `serve run` as a command line.

    engine_arg="a=1 b=2" becomes --engine-arg a=1 --engine-arg b=2, and verbose=true becomes
    --verbose.
    """
    found: list[str] = []
    for key, value in words.items():
        name = key_of(key)
        values = shlex.split(str(value)) if name == REPEATED else [str(value)]
        for one in values:
            found += [f"--{name}"] if one.lower() == "true" else [f"--{name}", one]
    return found
