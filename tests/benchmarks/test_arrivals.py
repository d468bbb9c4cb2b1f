import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.workload import arrivals


def test_constant_is_exactly_constant():
    assert list(itertools.islice(arrivals.constant(4.0), 5)) == [0.0, 0.25, 0.5, 0.75, 1.0]


@given(st.floats(0.1, 100), st.sampled_from([0.25, 1.0, 8.0]), st.integers(0, 2**32))
def test_random_arrivals_come_in_order_and_repeat(rate, shape, seed):
    first = list(itertools.islice(arrivals.gamma(rate, shape, seed), 50))
    assert first == sorted(first)
    assert first == list(itertools.islice(arrivals.gamma(rate, shape, seed), 50))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("shape", "variation"), [(0.25, 2.0), (1.0, 1.0), (16.0, 0.25)])
def test_the_mean_rate_and_the_burstiness_are_what_was_asked(seed, shape, variation):
    times = list(itertools.islice(arrivals.gamma(10.0, shape, seed), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    # Within five standard errors of the mean, and as near for the deviation.
    assert mean == pytest.approx(0.1, rel=5 * variation / len(gaps) ** 0.5)
    assert deviation / mean == pytest.approx(variation, rel=0.1)


@given(st.floats(0.5, 20), st.floats(0.5, 20), st.floats(1, 60))
@example(0.5, 0.5000000000000001, 3.0)  # so flat that the textbook's root came out as 0
@example(5.0, 5.0, 10.0)
def test_a_ramp_s_rate_grows_linearly(first, last, seconds):
    times = list(arrivals.ramp(first, last, seconds))
    assert times == sorted(times)
    assert times[0] == 0.0
    assert times[-1] <= seconds * (1 + 1e-9)

    def due(time):
        return first * time + (last - first) * time * time / (2 * seconds)

    for number, time in enumerate(times):
        assert due(time) == pytest.approx(number, abs=1e-6 * (1 + number))
