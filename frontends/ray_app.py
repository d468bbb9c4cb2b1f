"""llmserve on Ray Serve, on one or several machines.

    serve run frontends.ray_app:app
    serve run frontends.ray_app:build model=bundled replicas=2 max_replicas=4 slo_ttft=1

The arguments are the options that all servers share (`python -m frontends.aiohttp_app --help`), as
key=value, and those of `frontends.cluster.settings`. See docs/scaling.md.
"""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from frontends.access.control import KEY_VARIABLE
from frontends.access.exposure import check_reach
from frontends.cluster.settings import ClusterServerSettings, from_words, read_settings
from llmserve import ConfigurationError

# The environment variable with the command line of `app`.
VARIABLE = "LLMSERVE_ARGUMENTS"
# Admission in the replicas limits their requests; Ray Serve's own limit must never apply first.
NO_BOUND = 100_000
MAX_HOSTS = 10_000
# Seconds in which an engine ends after the drain. Ray would kill it, and its shared memory would stay.
ENGINE_END_SECONDS = 30.0
# Seconds over which the autoscaler's metrics are averaged. Ray Serve's default of 30 s is slower
# than a queue fills, and Ray Serve requires more than 10 s.
LOOK_BACK_SECONDS = 11.0
# The ingress logs every request, as Ray Serve does by default; the deployments behind it need not.
QUIET = {"enable_access_log": False}


def build(words: Mapping[str, str]) -> Any:
    """Build a Ray Serve application.

    Raises ConfigurationError, which names the invalid argument.
    """
    return application(from_words(words))


def application(arguments: list[str]) -> Any:
    """Build a Ray Serve application from a command line; see `build`."""
    settings = read_settings(arguments)
    if os.environ.get(KEY_VARIABLE):
        raise ConfigurationError(f"{KEY_VARIABLE} does not reach the replicas: use api_keys=FILE with a file that exists on every node")

    access = settings.access
    check_reach(
        "--host",
        list(settings.cluster.hosts),
        settings.engine.spec.version(),
        insecure=access.insecure,
        authenticated=access.api_keys is not None,
    )

    from ray import serve

    from frontends.cluster.ingress import Ingress
    from frontends.cluster.replica import Replica
    from frontends.cluster.shared_state import SharedState

    replicas = serve.deployment(Replica).options(**_replica_options(settings))
    # On the head node, without which there is no cluster: the loss of another node cannot end it.
    where = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    shared_state = serve.deployment(SharedState).options(name="SharedState", num_replicas=1, ray_actor_options=where, logging_config=QUIET)
    ingress = serve.deployment(Ingress).options(**_ingress_options(settings))
    state = shared_state.bind()
    return ingress.bind(replicas.bind(settings, state), state, settings)


def _replica_options(settings: ClusterServerSettings) -> dict[str, Any]:
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    cluster = settings.cluster
    scaling = AutoscalingConfig(
        min_replicas=cluster.replicas,
        max_replicas=cluster.most,
        initial_replicas=cluster.replicas,
        upscale_delay_s=cluster.scale_up_delay,
        downscale_delay_s=cluster.scale_down_delay,
        look_back_period_s=LOOK_BACK_SECONDS,
        policy=AutoscalingPolicy(policy_function="frontends.cluster.autoscaling:desired_replicas"),
    )
    return {
        "name": "Replica",
        "max_ongoing_requests": NO_BOUND,
        "ray_actor_options": {"num_cpus": cluster.replica_cpus, "num_gpus": settings.gpus},
        "graceful_shutdown_timeout_s": settings.limits.drain_timeout + ENGINE_END_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": QUIET,
        **({"autoscaling_config": scaling} if cluster.most > cluster.replicas else {"num_replicas": cluster.replicas}),
    }


def _ingress_options(settings: ClusterServerSettings) -> dict[str, Any]:
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    everywhere = AutoscalingConfig(
        min_replicas=settings.cluster.ingresses,
        max_replicas=settings.cluster.ingresses * MAX_HOSTS,
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=AutoscalingPolicy(policy_function="frontends.cluster.autoscaling:desired_ingresses"),
    )
    return {
        "name": "Ingress",
        "max_ongoing_requests": NO_BOUND,
        "ray_actor_options": {"num_cpus": 0},
        "max_replicas_per_node": settings.cluster.ingresses,
        "graceful_shutdown_timeout_s": settings.limits.drain_timeout + 10,
        "graceful_shutdown_wait_loop_s": 0.5,
        "autoscaling_config": everywhere,
    }


def __getattr__(name: str) -> Any:
    if name == "app":
        return application(shlex.split(os.environ.get(VARIABLE, "")))
    raise AttributeError(name)
