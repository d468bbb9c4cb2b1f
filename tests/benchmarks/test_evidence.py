"""Evidence of the engine beyond the knee, and the cause that it indicates."""

from typing import Any

import pytest

from benchmarks.analysis.evidence import Evidence, gather, name_cause
from benchmarks.analysis.summary import summarize
from benchmarks.recording.monitor import Monitor
from benchmarks.recording.prometheus_text import parse_metrics
from benchmarks.recording.results import Point, Sample

QUIET: dict[str, Any] = {"running": 8, "waiting": 0.0, "kv_usage": 0.1, "preemptions": 0, "host_cpu": 0.2, "engine_cpu": 0.3, "gpu": 0.9}
ENGINE = {"max_num_seqs": 16, "max_num_batched_tokens": 2048}


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"kv_usage": 0.99}, "kv cache", "99%"),
        ({"preemptions": 3}, "kv cache", "3 preemptions"),
        ({"running": 16, "waiting": 12.5}, "batch", "max_num_seqs is 16 and 12.5 more"),
        ({"host_cpu": 0.97}, "host process", "97% of a core"),
        ({"engine_cpu": 1.02, "gpu": 0.4}, "engine process", "GPU is busy only 40% of the time"),
        ({"waiting": 6.9}, "prefill", "6.9 requests wait for prefill in steps of at most 2048"),
        ({"admission_waiting": 3.0}, "admission", "admission lets at most 8 requests run while 3.0 more wait"),
        ({}, "unknown", "neither"),
    ],
)
def test_the_cause_is_what_the_evidence_says(changes, name, words):
    found = name_cause(Evidence(**(QUIET | changes)), summarize([]), summarize([]), ENGINE)
    assert found.name == name
    assert words in found.clause


@pytest.mark.parametrize(
    ("running", "name", "words"),
    [
        ((8, 7, 8, 8, 8, 8, 8, 8), "batch", "the server runs 8 requests at a time while 4.0 more wait"),
        ((12, 9, 14, 11, 13, 10, 15, 12), "queue", "4.0 requests wait on average, and the server's metrics do not show for what"),
    ],
)
def test_a_server_s_batch_is_full_if_its_size_is_constant_while_requests_wait(running, name, words):
    """Regression: "8.0 requests waited for prefill in steps of at most ? tokens" at a batch limit."""
    samples = [Sample(point=0, time=at / 8, running=number, waiting=4) for at, number in enumerate(running)]
    found = name_cause(gather(Point(number=0, target="t"), samples, (0.0, 1.0)), summarize([]), summarize([]), None)
    assert found.name == name
    assert words in found.clause


def test_an_engine_on_the_cpu_is_busy_by_its_work():
    assert name_cause(Evidence(**(QUIET | {"engine_cpu": 1.9, "gpu": None})), summarize([]), summarize([]), ENGINE).name == "unknown"


def test_a_server_that_reports_nothing_has_no_cause():
    nothing = gather(Point(number=0, target="t"), [], (0.0, 1.0))
    assert str(nothing) == "the server reported nothing"
    assert name_cause(nothing, summarize([]), summarize([]), None).name == "unknown"


def test_means_are_those_of_the_window_and_peaks_of_the_whole_point():
    samples = [
        Sample(point=0, time=float(at), running=at, waiting=at, preemptions=5 + at, host_cpu=at * 0.5, engine_cpu=2.0 * at)
        for at in range(11)
    ]
    found = gather(Point(number=0, target="t"), samples, (4.0, 6.0))
    assert (found.running, found.waiting, found.preemptions) == (10, 5.0, 10)
    assert (found.host_cpu, found.engine_cpu) == (0.5, 2.0)


def test_samples_are_thinned_and_counted_from_the_point_s_start():
    monitor = Monitor(0, None)
    monitor.samples = [Sample(point=0, time=10.0 + at, host_cpu=100.0 + at, engine_cpu=None) for at in range(5)]
    found = monitor.since(12.0)
    assert [(sample.time, sample.host_cpu) for sample in found] == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]


OURS = """# TYPE llmserve_engine_running gauge
llmserve_engine_running 3.0
# TYPE llmserve_requests_waiting gauge
llmserve_requests_waiting 2.0
# TYPE llmserve_engine_kv_usage gauge
llmserve_engine_kv_usage 0.25
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 99.0
"""
THEIRS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0"} 17.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0"} 640.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0"} 160.0
"""


def test_both_servers_series_are_known_and_ours_go_first():
    assert parse_metrics(OURS) == {"running": 3, "admission_waiting": 2, "kv_usage": 0.25}
    assert parse_metrics(THEIRS) == {"running": 7, "generation_tokens": 17, "prefix_queries": 640, "prefix_hits": 160}
    assert parse_metrics("") == {}
