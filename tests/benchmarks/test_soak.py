"""The slope of a soak's samples, and a short soak that contains every end of a request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.robustness.soak import MAX_GROWTH, PARTS, Length, Sample, Soak, config, measure, slope
from llmserve import EngineManager

NUMBERS = st.floats(-1e6, 1e6)
PLACES = st.lists(st.integers(0, 10**7), min_size=3, max_size=60, unique=True)


@given(PLACES, NUMBERS, NUMBERS)
def test_points_on_a_line_have_its_slope_and_no_interval(places, rise, start):
    found = slope(places, [start + rise * place for place in places])
    size = abs(start) + abs(rise) * max(places) + 1
    assert math.isclose(found.slope, rise, rel_tol=1e-6, abs_tol=1e-6 * size / (max(places) - min(places)))
    assert found.margin <= 1e-5 * size / (max(places) - min(places)) * len(places)


@given(PLACES, st.data(), st.floats(-1e3, 1e3), st.floats(-1e9, 1e9))
def test_a_slope_adds_up_and_does_not_depend_on_the_level(places, data, rise, level):
    values = data.draw(st.lists(st.floats(-1e6, 1e6), min_size=len(places), max_size=len(places)))
    before = slope(places, values)
    after = slope(places, [value + rise * place + level for place, value in zip(places, values, strict=True)])
    size = (1e6 + abs(rise) * 1e7 + abs(level)) / (max(places) - min(places))
    assert math.isclose(after.slope, before.slope + rise, rel_tol=1e-6, abs_tol=1e-6 * size)


def test_the_interval_is_that_of_a_least_squares_line():
    """Calculated by hand: residuals of 1, -2 and 1 over places with a spread of 2."""
    found = slope([0, 1, 2], [1.0, 0.0, 5.0])
    assert found.slope == pytest.approx(2.0)
    assert found.margin == pytest.approx(1.96 * math.sqrt(6 / 1 / 2))


def soaked(sizes):
    samples = [Sample(requests=1000 * number, rss=int(size), tasks=1, descriptors=1, series=1) for number, size in enumerate(sizes)]
    return Soak(seconds=1.0, ends={}, samples=samples)


def test_memory_that_grows_only_in_the_first_third_is_level():
    assert soaked([1e6 * min(number, 20) for number in range(60)]).level
    assert soaked([0.9 * MAX_GROWTH * 1000 * number for number in range(60)]).level
    assert not soaked([1.1 * MAX_GROWTH * 1000 * number for number in range(60)]).level


def test_a_soak_has_its_parts_by_requests_or_by_seconds():
    assert sum(part.requests for part in Length(requests=6000).parts()) == 6000
    assert [part.seconds for part in Length(seconds=30.0).parts()] == [30.0 / PARTS] * PARTS


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_short_soak_has_every_end(anyio_backend):
    manager = EngineManager.open("bundled", engine="simulated", engine_args={"time_scale": 0.02}, config=config(32))
    found = await measure(manager, Length(requests=600), 32, 1, lambda _: None)
    assert len(found.samples) == PARTS
    assert found.samples[-1].requests == sum(found.ends.values()) == 600
    # The number of requests refused, or answered before they are cancelled, depends on the machine.
    assert {"answered", "InvalidRequest", "ModelNotFound", "HTTP 400", "HTTP 404"} <= found.ends.keys()
    assert not [end for end in found.ends if end.startswith("HTTP 5") and not end.startswith("HTTP 503")]
