"""The result of a search, and the verdict of each sweep with its evidence, advice and most important figures.

Verdicts and figures rest on the valid points only.
"""

import html
import math
from collections.abc import Sequence

from bokeh.models import Div

from benchmarks.analysis.table import cost_per_million, joules_per_token
from benchmarks.search.result import Found, searches
from reports.page_data import CONCURRENCY, Content, Named, Series
from reports.theme import block

NO_VERDICT = "No sweep, so there is no verdict on saturation."
NO_VALID = "No point of this sweep is valid, so it has no figures here. The charts show its points hollow."


def verdicts(content: Content) -> Div:
    """Return what a search found, and each sweep's verdict, with its evidence and advice."""
    parts = [_verdict(_colour(content, run, found), found.sentence) for run in content.runs for found in searches(run.analysis)]
    for series in content.sweeps:
        found = series.saturation
        if found is not None:
            parts.append(_verdict(series.colour, found.verdict, (f"Evidence {found.evidence}.", *found.advice)))
    return block("".join(parts) or f'<div class="verdict">{NO_VERDICT}</div>')


def _verdict(colour: str, text: str, lines: Sequence[str] = ()) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div class="verdict" style="border-color:{colour}">{html.escape(text)}{f"<ul>{items}</ul>" if items else ""}</div>'


def _colour(content: Content, run: Named, found: Found) -> str:
    """Return the colour of the series that a search measured."""
    return next((series.colour for series in content.every_series if _is_of(series, found) and series.run is run), "var(--line)")


def _is_of(series: Series, found: Found) -> bool:
    return series.axis.name == found.goal.loop and {view.point.target for view in series.views} == {found.target}


def tiles(content: Content) -> Div:
    """Return the most important figures of each sweep."""
    parts = []
    for series in content.sweeps:
        if len(content.sweeps) > 1:
            parts.append(f'<p class="soft" style="color:{series.colour}">{html.escape(series.label)}, by {series.axis.name}</p>')
        cells = "".join(
            f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>' for name, value in _tiles(series)
        )
        parts.append(f'<div class="tiles">{cells}</div>' if cells else f"<p>{html.escape(NO_VALID)}</p>")
    return block("".join(parts))


def _tiles(series: Series) -> list[tuple[str, str]]:
    """Return names and values; none without a valid point."""
    working, verdict, knee = series.working, series.saturation, series.knee
    if working is None:
        return []
    best = max(series.valid, key=lambda view: view.summary.tokens_per_second)
    load, summary = working.point.load, working.summary
    found = [(f"highest output tokens/s, at {best.point.load}", f"{best.summary.tokens_per_second:,.0f}")]
    digits, unit = (0, "concurrency") if series.axis is CONCURRENCY else (1, "requests/s")
    if verdict is not None:
        at, low, high = (f"{value:,.{digits}f}" for value in knee or (0, 0, 0))
        interval = f"{at} [{low}, {high}]" if knee is not None else "not found"
        found += [(f"knee ({unit})", interval), ("limited by", verdict.cause.name if verdict.cause is not None else "-")]
    found += [
        (f"highest that meets the objective ({unit})", each.interval) for each in searches(series.run.analysis) if _is_of(series, each)
    ]
    found += [(f"TTFT {name} at {load}", milliseconds(summary.ttft.at(name))) for name in ("p50", "p99")]
    found.append((f"TPOT p50 at {load}", milliseconds(summary.tpot.at("p50"))))
    if summary.attainment is not None:
        found.append((f"of the requests met the SLO at {load}", f"{summary.attainment:.1%}"))
    price = series.run.analysis.recording.run.price_per_hour
    if (cost := cost_per_million(working, price)) is not None:
        found.append((f"cost per 1M output tokens at {load}", f"{cost:,.3f}"))
    if (energy := joules_per_token(working)) is not None:
        found.append((f"J per output token at {load}", f"{energy:,.3g}"))
    return found


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None or not math.isfinite(seconds) else f"{seconds * 1000:,.1f} ms"
