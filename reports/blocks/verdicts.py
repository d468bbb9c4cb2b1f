"""The verdict of each sweep with its evidence and advice, and its most important figures.

Both rest on the valid points only.
"""

import html
import math

from bokeh.models import Div

from benchmarks.analysis.table import cost_per_million, joules_per_token
from reports.page_data import CONCURRENCY, Content, Series
from reports.theme import block

NO_VERDICT = "No sweep, so there is no verdict on saturation."
NO_VALID = "No point of this sweep is valid, so it has no figures here. The charts show its points hollow."


def verdicts(content: Content) -> Div:
    """Return each sweep's verdict, with its evidence and advice."""
    parts = []
    for series in content.sweeps:
        found = series.saturation
        if found is not None:
            lines = "".join(f"<li>{html.escape(line)}</li>" for line in (f"Evidence {found.evidence}.", *found.advice))
            parts.append(f'<div class="verdict" style="border-color:{series.colour}">{html.escape(found.verdict)}<ul>{lines}</ul></div>')
    return block("".join(parts) or f'<div class="verdict">{NO_VERDICT}</div>')


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
    if verdict is not None:
        digits, unit = (0, "concurrency") if series.axis is CONCURRENCY else (1, "requests/s")
        at, low, high = (f"{value:,.{digits}f}" for value in knee or (0, 0, 0))
        interval = f"{at} [{low}, {high}]" if knee is not None else "not found"
        found += [(f"knee ({unit})", interval), ("limited by", verdict.cause.name if verdict.cause is not None else "-")]
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
