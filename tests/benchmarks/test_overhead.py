"""Comparisons of paths and servers, without engine work, with real processes and wires."""

import itertools

import pytest

from benchmarks.host_cost import latency, overhead
from benchmarks.host_cost.server_processes import Setting
from benchmarks.host_cost.variants import Trial, open_sides, parse_side
from benchmarks.robustness import connections
from benchmarks.targets import TargetError


@pytest.fixture
def anyio_backend():
    """Real sockets need the real clock."""
    return "asyncio"


def silent(line):
    pass


def trial(rate, wait=0.1, failed=0):
    return Trial(tokens_per_second=rate, cpu_microseconds_per_token=10.0, ttft_p50=wait / 2, ttft_p99=wait, failed=failed)


async def test_all_our_paths_are_measured_without_engine_work():
    names = ["inprocess", "http", "chat", "tcp", "unix"]
    setting = Setting(core="nothing", answer_tokens=20)
    (point,) = await overhead.measure(names, setting, [4], 2, silent)
    assert {name: len(trials) for name, trials in point.trials.items()} == dict.fromkeys(names, 2)
    for trials in point.trials.values():
        assert all(trial.tokens_per_second > 0 and trial.failed == 0 and trial.ttft_p50 <= trial.ttft_p99 for trial in trials)
    assert "- tcp over http:" in overhead.conclude([point])


@pytest.mark.parametrize(
    ("name", "core"),
    [("http:2", "nothing"), ("joined", "nothing"), ("vllm:4", "stubbed"), ("vllm-rust", "stubbed"), ("vllm-rust-chat", "stubbed")],
)
async def test_several_processes_cannot_share_a_core_that_is_in_one(name, core):
    with pytest.raises(TargetError, match="needs an engine core that is a process"):
        await overhead.measure([name], Setting(core=core), [4], 1, silent)


@pytest.mark.parametrize("name", ["bare", "vllm", "vllm-chat", "vllm-rust"])
async def test_vllm_s_paths_need_vllm_s_core(name):
    """Regression: the server ran a real engine, but was measured as one that does no work."""
    with pytest.raises(TargetError, match="needs vLLM's engine core"):
        await overhead.measure([name], Setting(core="nothing"), [4], 1, silent)


def test_all_variants_over_the_null_core_have_the_same_engine_arguments():
    setting = Setting(core="null", engine_args={"max_num_seqs": 8})
    assert setting.args_of_ours == setting.args_of_vllm
    assert setting.args_of_ours["max_num_seqs"] == 8
    assert setting.args_of_ours["distributed_executor_backend"] == "benchmarks.stand_ins.null_executor.NullExecutor"


def test_ratios_are_of_the_same_round():
    point = overhead.Point(
        streams=8, core="stubbed", trials={"http": [trial(10), trial(30), trial(80)], "vllm": [trial(5), trial(10), trial(20, failed=1)]}
    )
    text = overhead.conclude([point])
    assert "http over vllm: 3.00 (2.00 to 4.00) times the tokens/s, 1.00 (1.00 to 1.00) times the CPU per token" in text
    assert "| vllm | 10 (5 to 20) |" in text
    assert text.splitlines()[5].endswith("| 1 |")


UNKNOWN = [
    "ftp",
    "tcp:4",
    "http:x",
    "http:",
    "http:0",
    "vllm-rust:2",
    "bare:2",
    "vllm-rust-chat:2",
    "pool",
    "pool:2",
    "direct:0:4",
    "vllm-dp:2:x",
    "cluster:2:4",
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_variant_is_named(name):
    with pytest.raises(TargetError, match=f"unknown variant {name!r}"):
        parse_side(name)


async def test_a_server_that_ends_is_reported_with_its_last_output():
    setting = Setting(core="nothing", engine_args={"max_num_seqs": 1}, model="bundled")
    with pytest.raises(TargetError, match="bare is vLLM's own loop"):
        await overhead.measure(["bare"], setting, [1], 1, silent)
    with pytest.raises(TargetError, match=r"exited with code 2.*key=value"):
        await overhead.measure(["http"], Setting(core="nothing", engine_args={"": 1}), [1], 1, silent)


@pytest.mark.parametrize("alone", [False, True])
async def test_the_latency_that_a_path_adds_is_measured_for_every_token(alone, monkeypatch):
    monkeypatch.setattr(latency, "ANSWER_TOKENS", 10)
    found = await latency.measure(2, 4, 1, silent, alone=alone)
    for way in found.values():
        assert len(way.ttft) == len(way.itl) == len(way.e2e) == 4
        assert all(len(added) == 10 and min(added) > 0 for added in way.added)
    assert "times what HTTP adds to a token at p99" in latency.conclude(found)


async def test_idle_and_stalled_connections_are_held_and_weighed(monkeypatch):
    monkeypatch.setattr(connections, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(connections, "NEIGHBOUR_TOKENS", 10)
    cost = await connections.measure(20, 5, silent)
    assert cost.gap_p99_beside_stalled > 0.015
    assert "20 idle connections take" in connections.conclude(cost)


async def test_more_connections_than_the_system_allows_are_refused():
    with pytest.raises(TargetError, match="the system allows this process only"):
        await connections.measure(10**9, 1, silent)


async def test_a_pool_and_as_many_servers_side_by_side_get_the_same_load():
    setting = Setting(core="simulated", answer_tokens=8, requests=2, engine_args={"time_scale": 0.0})
    async with open_sides(["pool:2:2", "direct:2:1"], setting, 5) as sides:
        # A regression: with one stream, the second server's part had none, and the run ended with ZeroDivisionError.
        for side, streams in itertools.product(sides.values(), [1, 5]):
            trial = await side(streams, 0)
            assert (trial.failed, trial.failure) == (0, "")
            assert trial.tokens_per_second > 0
