"""One set of valid points stands behind every sentence, tile and chart."""

import html
import re
from typing import Any

import attrs
import pytest
from bokeh.document import Document
from bokeh.models import BoxAnnotation, Div, GlyphRenderer
from bokeh.models.plots import Plot
from support.recordings import closed, opened, write

from benchmarks.analysis import report
from benchmarks.analysis.rates import RateKnee, RateSaturation
from benchmarks.recording import storage
from benchmarks.recording.results import Goal, Promise
from benchmarks.search.result import conclude, searches
from reports.__main__ import build_parser
from reports.blocks.verdicts import tiles
from reports.charts.comparison import forests
from reports.charts.curves import latency, throughput, throughput_vs_latency
from reports.charts.goodput import goodput
from reports.page import add_to
from reports.page_data import CONCURRENCY, RATE, load

SLO = Promise(ttft=0.03)
LEVELS = (1, 2, 4, 8, 16, 32)


def document(*paths, **options):
    found = Document()
    add_to(found, load(paths, **options))
    found.validate()
    return found


def text(*paths, **options):
    return " ".join(model.text for model in document(*paths, **options).models if isinstance(model, Div))


@pytest.fixture
def run(tmp_path):
    """Six concurrencies; the highest and fastest is not valid."""
    return write(tmp_path / "run.json", [closed(number, level) for number, level in enumerate(LEVELS)], invalid={5}, promise=SLO)


@pytest.fixture
def rates(tmp_path):
    points = [opened(number, rate) for number, rate in enumerate((1.0, 2.0, 5.0, 10.0))]
    return write(tmp_path / "rates.json", points, invalid={3}, refused=0.25, promise=SLO)


def hollow(chart):
    """Return the x of the hollow marks, without those that only explain them in the legend."""
    marks = [one for one in chart.renderers if isinstance(one, GlyphRenderer) and getattr(one.glyph, "fill_color", "") is None]
    return sorted(x for mark in marks for x in mark.data_source.data["x"] if x == x)


def charts(found) -> dict[str, Any]:
    """Return the charts of a document by their titles."""
    return {chart.title.text: chart for chart in found.select({"type": Plot})}


def labels(chart):
    return [item.label.value for item in chart.legend[0].items]


@pytest.mark.parametrize("draw", [throughput, latency])
def test_a_point_that_is_not_valid_is_hollow_by_concurrency(run, draw):
    chart = draw(load([run]))
    assert set(hollow(chart)) == {32.0}
    assert "not valid" in labels(chart)


@pytest.mark.parametrize("draw", [throughput, latency])
def test_a_point_that_is_not_valid_is_hollow_by_rate(rates, draw):
    chart = draw(load([rates]), RATE)
    assert set(hollow(chart)) == {10.0}
    assert "not valid" in labels(chart)


@pytest.mark.parametrize("draw", [throughput_vs_latency, goodput])
def test_the_other_charts_of_points_have_hollow_points_too(run, draw):
    chart = draw(load([run]))
    assert len(hollow(chart)) == 1
    assert "not valid" in labels(chart)


def test_a_line_runs_through_valid_points_only(run):
    chart = throughput(load([run]))
    ends = [
        max(one.data_source.data["x"])
        for one in chart.renderers
        if type(one.glyph).__name__ == "Line" and len(one.data_source.data["x"]) > 2
    ]
    assert ends == [16.0]


def test_bars_of_points_that_are_not_valid_are_named_and_hollow(run):
    found = document(run)
    for title in ("Stages of the mean answered request", "How requests ended"):
        chart = charts(found)[title]
        assert "inprocess, concurrency 32 (not valid)" in chart.y_range.factors
        rows = {row for one in chart.renderers if one.glyph.fill_color is None for row in one.data_source.data["y"]}
        assert rows == {"inprocess, concurrency 32 (not valid)"}


def test_the_tile_and_the_sentence_name_one_throughput(run):
    words = text(run)
    peak = report.analyse(storage.read(run)).sweeps[0].saturation.peak
    assert f"The highest throughput is {peak:,.0f} tokens/s at concurrency 16" in words
    assert re.search(rf"<b>{peak:,.0f}</b><span>highest output tokens/s, at concurrency 16</span>", words)
    assert "1 of 6 points are not valid" in words


def test_a_sweep_without_a_valid_point_has_no_tiles(tmp_path):
    words = text(write(tmp_path / "run.json", [closed(number, level) for number, level in enumerate(LEVELS)], invalid=set(range(6))))
    assert "No point of this sweep is valid" in words
    assert '<div class="tile">' not in words


def test_rates_have_tiles_and_charts_of_latency(rates):
    words = text(rates)
    assert "highest output tokens/s, at poisson 5/s" in words
    titles = charts(document(rates)).keys()
    assert {f"{name} by rate" for name in ("Throughput", "Time to first token", "Time per token", "End-to-end time")} <= titles


def test_a_missed_slo_is_answered(tmp_path):
    """Regression: "ok 0 of 192" looked like a failure of every request."""
    words = text(write(tmp_path / "run.json", [closed(0, 4)], promise=Promise(ttft=0.001)))
    table = words[words.index("<table>") :]
    row = dict(zip(re.findall("<th>(.*?)</th>", table), re.findall("<td>(.*?)</td>", table), strict=False))
    assert (row["requests"], row["answered"], row["met the SLO"]) == ("60", "60", "0")


def test_every_heading_of_a_latency_has_its_unit(run):
    headings = re.findall("<th>(.*?)</th>", text(run))
    assert all("(ms)" in name for name in headings if name.startswith(("TTFT", "ITL", "TPOT", "E2E")))
    assert "TTFT p95 (ms)" in headings


def test_three_runs_are_two_comparisons_with_the_first(tmp_path):
    paths = [write(tmp_path / f"{name}.json", [closed(0, 1), closed(1, 2)]) for name in ("old", "new", "newest")]
    assert [chart.title.text for chart in forests(load(paths))] == ["new over old", "newest over old"]


def test_the_reference_is_drawn_on_request(run):
    given = build_parser().parse_args(["build", str(run)])
    assert given.reference is False
    assert "RTX 4090" not in text(run)
    assert build_parser().parse_args(["build", "--reference", str(run)]).reference is True
    assert not any("RTX" in label for label in labels(throughput(load([run]), CONCURRENCY)))


def test_the_knee_of_a_sweep_over_rates_is_shaded_and_its_point_is_the_tiles(rates):
    content = load([rates])
    (series,) = content.every_series
    verdict = RateSaturation(knee=RateKnee(2.5, 2.0, 3.0), cause=None, evidence="none", peak=1.0, verdict="It saturates.", advice=[])
    content.every_series = [attrs.evolve(series, saturation=verdict)]
    (shade,) = (one for one in throughput(content, RATE).center if isinstance(one, BoxAnnotation))
    assert (shade.left, shade.right) == (2.0, 3.0)
    assert content.every_series[0].working.point.rate == 2.0
    assert "<b>2.5 [2.0, 3.0]</b><span>knee (requests/s)</span>" in tiles(content).text


@pytest.mark.parametrize("loop", ["rate", "concurrency"])
def test_the_page_has_the_result_of_a_search_as_the_terminal_has_it(run, rates, tmp_path, loop):
    """The points of the other kind of load count for nothing; a sample of the requests has the same result."""
    path = rates if loop == "rate" else run
    recording = storage.read(path)
    recording.run.search, recording.run.promise = Goal(loop=loop, attainment=0.5, width=0.03), Promise(ttft=0.0275)
    storage.write(path, recording)
    (found,) = searches(report.analyse(storage.read(path)))
    assert found.sentence in conclude(report.analyse(storage.read(path)))[0]
    assert html.escape(found.sentence) in text(path)
    assert f"<b>{found.interval}</b><span>highest that meets the objective" in tiles(load([path])).text
    storage.write(tmp_path / "sample.json", report.sample(recording, 2, 1))
    (again,) = searches(report.analyse(storage.read(tmp_path / "sample.json")))
    assert again == found


def test_a_page_without_a_search_has_no_result_of_one(run):
    assert "objective" not in text(run)
