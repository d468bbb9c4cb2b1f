from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve import SLO, Outcome, Timeline
from llmserve.observability.metrics import LogHistogram, MetricsRecorder, RecentRate, meets


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_within_two_per_cent_of_the_exact_one(values, share):
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    rank = max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1)
    low, high = ordered[max(0, rank - 1)], ordered[min(len(ordered) - 1, rank + 1)]
    assert low / 1.02 <= histogram.percentile(share) <= high * 1.02


def test_values_outside_the_range_are_counted_at_its_edge():
    histogram = LogHistogram()
    for value in (0.0, 1e9):
        histogram.add(value)
    assert histogram.count == 2
    assert histogram.maximum == 1e9


def test_an_empty_histogram_has_no_percentiles():
    assert LogHistogram().snapshot() == {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None, "max": None}


def test_weights_count():
    histogram = LogHistogram()
    histogram.add(1.0, weight=99)
    histogram.add(10.0)
    assert histogram.percentile(0.99) == pytest.approx(1.0, rel=0.02)
    assert histogram.count_below(5.0) == 99


def test_a_rate_covers_its_window_and_forgets():
    rate = RecentRate(window=10)
    for second in range(100):
        rate.add(5, float(second))
    assert rate.per_second(99.9, since=0.0) == pytest.approx(5.0, rel=0.1)
    assert rate.per_second(200.0, since=0.0) == 0.0
    assert len(rate.seconds) <= 11


def timeline(first, last, tokens, outcome=Outcome.COMPLETED):
    return Timeline(
        arrived=10.0,
        admitted=10.0,
        first_token=10 + first,
        last_token=10 + last,
        finished=10 + last,
        completion_tokens=tokens,
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (SLO(), True),
        (SLO(ttft=1.0), True),
        (SLO(ttft=0.4), False),
        (SLO(tpot=0.11), True),
        (SLO(tpot=0.09), False),
        (SLO(ttft=1.0, tpot=0.09), False),
    ],
)
def test_goodput_needs_every_bound_of_the_slo(slo, good):
    assert meets(slo, timeline(0.5, 1.5, 11)) is good


def test_one_token_has_no_time_per_further_token():
    assert meets(SLO(tpot=1e-9), timeline(0.5, 0.5, 1))


def test_goodput_is_a_share_of_all_that_arrived():
    recorder = MetricsRecorder(SLO(ttft=1.0), started=0.0)
    recorder.finished(timeline(0.5, 1.0, 5))
    recorder.finished(timeline(2.0, 3.0, 5))
    recorder.finished(Timeline(outcome=Outcome.REFUSED, reason="queue_full", finished=1.0))
    recorder.finished(timeline(0.1, 0.2, 5, Outcome.CANCELLED))
    snapshot = recorder.snapshot(12.0)
    assert snapshot["goodput"]["share"] == 1 / 4
    assert snapshot["requests"]["refused"] == 1
    assert snapshot["reasons"] == {"queue_full": 1}
    assert snapshot["e2e"]["count"] == 2


def test_recorders_of_several_processes_are_one_that_has_seen_it_all():
    slo = SLO(ttft=1.0)
    parts = [MetricsRecorder(slo, started=float(number)) for number in range(3)]
    whole = MetricsRecorder(slo, started=0.0)
    for recorder in (*parts, whole):
        recorder.named = frozenset({"web"})
    for number in range(30):
        for recorder in (parts[number % 3], whole):
            recorder.tokens(Timeline(arrived=1.0), 1, 1.5 + number / 32)
    for number in range(30):
        line = Timeline(arrived=1.0, admitted=1.125, prompt_tokens=2, completion_tokens=3, first_token=1.5 + number / 32, last_token=4.0)
        line.finished, line.outcome, line.reason = 4.0 + number, Outcome.COMPLETED if number % 4 else Outcome.REFUSED, "queue_full"
        line.tenant = ("web", "somebody")[number % 2]
        for recorder in (parts[number % 3], whole):
            recorder.tokens(line, 2, 4.0 + number)
            recorder.finished(line)
    together = MetricsRecorder.together(parts)
    assert together.snapshot(35.0) == whole.snapshot(35.0)
    assert [part.completion_tokens for part in parts] == [30, 30, 30]


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 3)), min_size=1, max_size=60), st.integers(0, 59))
def test_a_recorder_counts_every_token_once_however_often_it_is_read(deliveries, reading):
    recorder, now, counted = MetricsRecorder(SLO(), started=0.0), 0.0, Counter()
    line = Timeline(arrived=0.0, last_token=0.0)
    for number, (pause, tokens) in enumerate(deliveries):
        now += pause
        recorder.tokens(line, tokens, now)
        counted[int(now)] += tokens
        if number == reading:
            recorder.snapshot(now)
    snapshot = recorder.snapshot(now)
    assert snapshot["tokens"]["completion"] == snapshot["itl"]["count"] == counted.total()
    recent = sum(tokens for second, tokens in counted.items() if second >= int(max(now - 10, 0)))
    assert snapshot["tokens"]["per_second"] == pytest.approx(recent / max(min(now, 10.0), 1.0))


def test_tenants_are_counted_by_the_names_that_the_operator_gave():
    recorder = MetricsRecorder(SLO(), started=0.0)
    recorder.named = frozenset({"web"})
    for number in range(100):
        recorder.finished(Timeline(tenant=f"made up {number}", outcome=Outcome.REFUSED, finished=1.0))
    recorder.finished(Timeline(tenant="web", outcome=Outcome.COMPLETED, prompt_tokens=3, completion_tokens=4, finished=1.0))
    assert recorder.snapshot(2.0)["tenants"] == {
        "others": {"requests": {"refused": 100}, "tokens": {"prompt": 0, "completion": 0}},
        "web": {"requests": {"completed": 1}, "tokens": {"prompt": 3, "completion": 4}},
    }
