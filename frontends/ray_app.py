"""llmserve on Ray Serve, past one machine: `serve run frontends.ray_app:app`, or with arguments
`serve run frontends.ray_app:build model=bundled replicas=2 max_replicas=4 slo_ttft=1`. See docs/scaling.md.

The arguments are those of every server (`python -m frontends.aiohttp_app --help`), as key=value, and those of
`frontends.cluster.arguments`.
"""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from frontends.access.control import KEY_VARIABLE
from frontends.cluster.arguments import from_words, parse
from llmserve import ConfigurationError

# What `app` is built from, as a command line.
VARIABLE = "LLMSERVE_ARGUMENTS"
# The gates in the replicas decide how much they take, and not Ray Serve's own bound.
NO_BOUND = 100_000
MAX_HOSTS = 10_000
STATS_SECONDS = 0.5
# Figures for the autoscaler are means over so long: Ray Serve's own 30 s are slower than a queue fills, and it wants more than 10.
LOOK_BACK_SECONDS = 11.0
# The ingress logs every request, as Ray Serve does; what goes on behind it need not be logged again.
QUIET = {"enable_access_log": False}


def build(words: Mapping[str, str]) -> Any:
    """An application for Ray Serve. Raises ConfigurationError, naming the argument that is wrong."""
    return application(from_words(words))


def application(arguments: list[str]) -> Any:
    """The same from a command line."""
    options = parse(arguments)
    if os.environ.get(KEY_VARIABLE):
        raise ConfigurationError(f"{KEY_VARIABLE} does not reach the replicas: name a file that every node has, with api_keys=FILE")

    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

    from frontends.cluster.ingress import Ingress
    from frontends.cluster.replica import Replica
    from frontends.cluster.shared_state import SharedState

    scaling = AutoscalingConfig(
        min_replicas=options.replicas,
        max_replicas=options.max_replicas,
        initial_replicas=options.replicas,
        upscale_delay_s=options.scale_up_delay,
        downscale_delay_s=options.scale_down_delay,
        look_back_period_s=LOOK_BACK_SECONDS,
        policy=AutoscalingPolicy(policy_function="frontends.cluster.autoscaling:desired_replicas"),
    )
    replicas = serve.deployment(Replica).options(
        name="Replica",
        max_ongoing_requests=NO_BOUND,
        ray_actor_options={"num_cpus": options.replica_cpus, "num_gpus": options.replica_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="frontends.cluster.router:PredictedWaitRouter", request_routing_stats_period_s=STATS_SECONDS
        ),
        graceful_shutdown_timeout_s=options.drain_timeout + 10,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=QUIET,
        **({"autoscaling_config": scaling} if options.max_replicas > options.replicas else {"num_replicas": options.replicas}),
    )
    # With the head, without which there is no cluster: no other host's end takes it along.
    where = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    board = serve.deployment(SharedState).options(name="SharedState", num_replicas=1, ray_actor_options=where, logging_config=QUIET)
    everywhere = AutoscalingConfig(
        min_replicas=options.ingresses,
        max_replicas=options.ingresses * MAX_HOSTS,
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=AutoscalingPolicy(policy_function="frontends.cluster.autoscaling:desired_ingresses"),
    )
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        max_ongoing_requests=NO_BOUND,
        ray_actor_options={"num_cpus": 0},
        max_replicas_per_node=options.ingresses,
        autoscaling_config=everywhere,
    )
    return ingress.bind(replicas.bind(arguments, board.bind()), options.api_keys, options.max_incomplete_bytes)


def __getattr__(name: str) -> Any:
    if name == "app":
        return application(shlex.split(os.environ.get(VARIABLE, "")))
    raise AttributeError(name)
