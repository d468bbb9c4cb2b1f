"""A cluster beside a pool without Ray, as `python -m benchmarks overhead` measures them."""

import psutil

from benchmarks.host_cost import overhead
from benchmarks.host_cost.server_processes import Setting


def raylets():
    return {one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == "raylet"}


async def test_a_cluster_is_measured_beside_a_pool_and_leaves_nothing_behind():
    before = raylets()
    setting = Setting(core="simulated", answer_tokens=8, requests=2)
    (point,) = await overhead.measure(["cluster:2:1:2", "pool:2:1"], setting, [4], 1, lambda _: None)
    for trials in point.trials.values():
        assert [(trial.failed, trial.failure) for trial in trials] == [(0, "")]
    assert "- cluster:2:1:2 over pool:2:1:" in overhead.conclude([point])
    assert raylets() <= before
