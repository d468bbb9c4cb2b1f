"""A histogram that counts later has the same counts, and the series of several engines join."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from llmserve.engines.vllm.metrics import MAX_KEPT, EngineSeries, patient_histogram

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


def register(registry, engine, value, *, labelled=True):
    """Register what vLLM does for an engine, after it has removed what it finds."""
    for collector in list(registry._collector_to_names):
        if getattr(collector, "_name", "").startswith("vllm:"):
            registry.unregister(collector)
    gauge = Gauge("vllm:running", "Requests.", ["engine"] if labelled else ["adapter"], registry=registry)
    gauge.labels(engine if labelled else "any").set(value)


@pytest.fixture
def registry():
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def series(registry):
    series = EngineSeries(registry)
    registry.register(series)
    Gauge("other", "Not vLLM's.", registry=registry)
    return series


@pytest.mark.parametrize("labelled", [True, False])
def test_the_series_of_two_engines_are_told_apart(registry, series, labelled):
    for number in range(2):
        with series.of(series.start(object(), number)):
            register(registry, str(number), number + 5, labelled=labelled)
    lines = generate_latest(registry).decode().splitlines()
    assert lines.count("# TYPE vllm:running gauge") == 1
    assert [line.rpartition(" ")[2] for line in lines if line.startswith("vllm:running{")] == ["5.0", "6.0"]
    assert [f'engine="{number}"' in "".join(lines) for number in range(3)] == [True, True, False]
    assert registry.get_sample_value("other") == 0


def test_an_engine_that_starts_again_replaces_its_own_series_alone(registry, series):
    engines = object(), object()
    for number, value in ((0, 5), (1, 6), (0, 7)):
        with series.of(series.start(engines[number], number)):
            register(registry, str(number), value)
        # vLLM registers this one when the engine is up.
        with series.of(number):
            Gauge("vllm:info", "Sizes.", ["engine"], registry=registry).labels(str(number)).set(value)
    for name in ("vllm:running", "vllm:info"):
        assert [registry.get_sample_value(name, {"engine": engine}) for engine in "01"] == [7, 6]


def test_a_single_engine_s_series_are_those_of_vllm(registry, series):
    with series.of(series.start(object(), 0)):
        register(registry, "0", 5, labelled=False)
    assert registry.get_sample_value("vllm:running", {"adapter": "any"}) == 5


def test_engines_of_several_managers_do_not_replace_each_other(registry, series):
    chat, vectors, later = object(), object(), object()
    for engine, value in ((chat, 5), (vectors, 6)):
        number = series.start(engine, 0)
        with series.of(number):
            register(registry, str(number), value)
    assert [registry.get_sample_value("vllm:running", {"engine": number}) for number in "01"] == [5, 6]
    # One that restarts keeps its number, and one that has ended leaves it to the next.
    assert series.start(vectors, 0) == 1
    series.end(chat)
    assert series.start(later, 0) == 0
    assert registry.get_sample_value("vllm:running", {"engine": "0"}) is None
