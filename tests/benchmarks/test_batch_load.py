"""`benchmarks batch`: a batch beside other requests."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.robustness.batch_load import Kind, Row, Trial, conclude


def test_it_measures_a_batch_beside_other_requests_in_virtual_time(call, tmp_path):
    path = tmp_path / "found.json"
    ended = call(main, "batch", "--seconds", "60", "--lines", "24/8", "--others", "64/16/1", "--others", "256/16/0.5", "--out", str(path))
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 4
    rows = json.loads(path.read_bytes())
    assert [row["alone"]["others"]["prompt"] for row in rows] == [64, 256]
    for row in rows:
        # Lines ran where there should be some, through the batches' own code, and nowhere else.
        assert [row[name]["rate"] > 0 for name in ("capacity", "idle", "alone", "beside")] == [True, True, False, True]
        assert row["beside"]["rate"] < row["idle"]["rate"]
        assert all(len(row[name]["first_tokens"]) > 10 for name in ("alone", "beside"))


def test_its_table_compares_medians_and_tails():
    def trial(rate, first_tokens=()):
        return Trial(lines=None, others=Kind(64, 16, 0.5), seconds=10.0, rate=rate, first_tokens=list(first_tokens), stopped=0)

    row = Row(capacity=trial(2.0), idle=trial(8.0), alone=trial(0.0, [0.1, 0.2, 0.3]), beside=trial(5.4, [0.2, 0.3, 0.4]))
    cells = [cell.strip() for cell in conclude([row]).splitlines()[-1].strip("|").split("|")]
    assert cells == ["64 tokens in, 16 out, 0.5/s", "25 %", "90 %", "0.200 s", "+50 %", "0.298 s", "+34 %"]


@pytest.mark.parametrize("words", [("--others", "64/16"), ("--lines", "24/8/1"), ("--lines", "24/x"), ("--others", "64/16/0")])
def test_a_kind_that_is_not_one_is_refused_by_name(call, words):
    ended = call(main, "batch", *words)
    assert ended.returncode == 2
    assert words[0] in ended.stderr
