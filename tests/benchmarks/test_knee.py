"""A constructed knee is found; a curve without a knee gets none."""

import numpy as np
import pytest

from benchmarks.analysis.knee import Knee, NoKnee, find_knee

LOADS = (1, 2, 4, 8, 16, 32, 64, 128)
TRUE_KNEE = 20


def blocks(curve, noise, seed, count=8):
    """Return `count` throughputs per load: the curve's, with drift per point and noise."""
    rng = np.random.default_rng(seed)
    return [curve(load) * np.exp(rng.normal(0, noise / 2) + rng.normal(0, noise, count)) for load in LOADS]


def test_a_known_knee_lies_within_its_interval_for_18_of_20_seeds():
    found = [find_knee(LOADS, blocks(lambda load: 100.0 * min(load, TRUE_KNEE), 0.04, seed)) for seed in range(20)]
    covered = [isinstance(knee, Knee) and knee.low <= TRUE_KNEE <= knee.high for knee in found]
    assert sum(covered) >= 18
    widths = [knee.high / knee.low for knee in found if isinstance(knee, Knee)]
    assert np.median(widths) < 2, "an interval that covers anything says nothing"


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_sweep_has_no_knee(seed):
    found = find_knee(LOADS, blocks(lambda _: 100.0, 0.04, seed))
    assert isinstance(found, NoKnee)
    assert "does not grow" in found.reason


@pytest.mark.parametrize("noise", [0.0001, 0.04])
@pytest.mark.parametrize("seed", range(10))
def test_a_sweep_that_still_grows_asks_for_higher_loads(seed, noise):
    found = find_knee(LOADS, blocks(lambda load: 100.0 * load, noise, seed))
    assert isinstance(found, NoKnee)
    assert "still grows" in found.reason


def test_a_sweep_of_noise_has_no_knee():
    found = [find_knee(LOADS, blocks(lambda load: 100.0 * min(load, TRUE_KNEE) ** 0.35, 1.5, seed, count=3)) for seed in range(20)]
    assert sum(isinstance(knee, NoKnee) for knee in found) >= 18


def test_too_few_loads_are_no_sweep():
    found = find_knee(LOADS[:4], blocks(lambda load: 100.0 * min(load, 3), 0.01, 1)[:4])
    assert isinstance(found, NoKnee)
    assert "at least" in found.reason
