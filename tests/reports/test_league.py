"""The page of a league as a document."""

import json
from pathlib import Path

import pytest
from bokeh.models import Div, Tabs

from benchmarks.recording.storage import UnreadableRun
from reports.charts.league import kind
from reports.league import page, read

LEAGUE = Path(__file__).parents[2] / "reports" / "examples" / "overload" / "league.json"


def test_the_example_is_a_valid_page_with_a_tab_for_each_workload():
    league = read(LEAGUE)
    document = page(league)
    document.validate()
    workloads = list(dict.fromkeys(row["workload"] for row in league["rows"]))
    (tabs,) = (model for model in document.roots if isinstance(model, Tabs))
    assert [tab.title for tab in tabs.tabs] == [*workloads, "Policies", "Signals"]
    text = " ".join(model.text for model in document.models if isinstance(model, Div))
    assert "lategate has the highest goodput" in text


def test_names_and_headlines_are_escaped():
    league = json.loads(LEAGUE.read_text())
    league["contenders"][0]["headline"] = "<script>"
    text = str(page(league).to_json())
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("late", "class_ratio", "found"),
    [(0.01, 0.9, "meets the SLO"), (0.02, 0.5, "more than 1% late"), (0.0, 0.89, "serves some lengths less than 0.9 times as often")],
)
def test_a_policy_is_late_or_unfair_or_neither(late, class_ratio, found):
    assert kind({"late": late, "class_ratio": class_ratio}) == found


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": []}')
    with pytest.raises(UnreadableRun, match="not the results of"):
        read(tmp_path / "a.json")
