"""A histogram that counts later has the same counts."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from llmserve.engines.vllm.metrics import MAX_KEPT, patient_histogram

BUCKETS = (0.01, 0.025, 0.05, 1.0)


def text_of(kind, values, *, read_between):
    registry = CollectorRegistry()
    histogram = kind("gaps", "As vLLM makes them.", buckets=BUCKETS, labelnames=["engine"], registry=registry)
    child = histogram.labels("0")
    for number, value in enumerate(values):
        child.observe(value)
        if read_between and number % 3 == 0:
            generate_latest(registry)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line and "_sum" not in line], registry.get_sample_value("gaps_sum", {"engine": "0"})


# Includes the bounds themselves, which belong to the bucket that they end.
VALUES = st.lists(st.sampled_from(BUCKETS) | st.floats(0, 10), max_size=50)


@given(VALUES, st.booleans())
def test_it_reads_as_prometheus_own(values, read_between):
    ours, sum_of_ours = text_of(patient_histogram(), values, read_between=read_between)
    theirs, sum_of_theirs = text_of(Histogram, values, read_between=read_between)
    assert ours == theirs
    assert abs(sum_of_ours - sum_of_theirs) < 1e-9 * max(1, sum_of_theirs)


def test_it_keeps_no_more_than_it_says():
    histogram = patient_histogram()("gaps", "As vLLM makes them.", buckets=BUCKETS, registry=None)
    for _ in range(3 * MAX_KEPT - 1):
        histogram.observe(0.02)
    assert len(histogram._kept) == MAX_KEPT - 1
