"""Stages of a request: they sum to its time; readings in the wrong order are the residual."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.analysis.stages import BLIND_STAGES, STAGES, stages, waterfall
from benchmarks.recording.results import RequestRecord

READINGS = ["dispatched", "submitted", "engine_queued", "engine_scheduled", "engine_first_token", "engine_last_token"]


def request(times, **readings):
    return RequestRecord(
        point=0,
        number=0,
        prompt_tokens=1,
        wanted_tokens=2,
        intended=times[0],
        outcome="ok",
        deliveries=[(times[-2], 1), (times[-1], 1)],
        **readings,
    )


@given(st.lists(st.floats(0, 1000), min_size=9, max_size=9).map(sorted), st.sets(st.sampled_from(READINGS[1:4])))
def test_the_stages_of_a_request_sum_to_its_time_even_with_missing_readings(times, untold):
    readings = {name: None if name in untold else time for name, time in zip(READINGS, times[1:], strict=False)}
    one = request(times, **readings)
    found = stages(one)
    assert sum(found.values()) == pytest.approx(times[-1] - times[0], abs=1e-9)
    assert all(seconds >= 0 for seconds in found.values())
    assert set(found) <= set(STAGES)
    assert waterfall([one]).residual == 0


def test_a_server_without_engine_readings_has_three_stages():
    one = request([1.0, 2.0, 4.0], dispatched=1.5)
    assert stages(one) == {"generator late": 0.5, "until first token": 0.5, "streaming": 2.0}
    assert list(waterfall([one]).stages) == list(BLIND_STAGES)
    assert waterfall([one]).seen == 0


def test_readings_in_the_wrong_order_are_the_residual():
    one = request([0.0, 5.0, 10.0], dispatched=0.0, engine_first_token=6.0, engine_last_token=11.0)
    assert waterfall([one]).residual == pytest.approx(0.1)


def test_without_an_answer_there_is_none():
    assert waterfall([]) is None
