"""The texts of a page as HTML: head, verdict, tiles, table, files. A run's texts are escaped."""

import base64
import csv
import html
import io
import math
from collections.abc import Sequence

from bokeh.models import Div

from benchmarks.analysis.knee import Knee
from benchmarks.analysis.report import View
from benchmarks.recording.storage import requests_path, samples_path, summary_path
from reports.page_data import Content, Named, Series
from reports.theme import STYLE

# Larger files are only named, because a page of tens of megabytes hardly opens.
MAX_EMBEDDED_BYTES = 4 * 2**20


def block(text: str) -> Div:
    return Div(text=text, sizing_mode="stretch_width", stylesheets=[STYLE])


def warning(text: str) -> Div:
    return block(f'<div class="banner bad"><p>{html.escape(text)}</p></div>')


def head(content: Content) -> Div:
    """Return the title, what was measured on which machine, and whether it is valid."""
    models = ", ".join(dict.fromkeys(run.analysis.model for run in content.runs))
    parts = [f"<h1>{html.escape(models)} under load</h1>"]
    parts += [f"<details><summary>{html.escape(_in_short(run))}</summary>{_facts(run)}</details>" for run in content.runs]
    bad = [(run, view) for run, view in content.views if not view.valid]
    total = sum(len(run.analysis.views) for run in content.runs)
    if bad:
        reasons = "".join(f"<li>{html.escape(f'{_where(content, run, view)}: ' + '; '.join(view.faults))}</li>" for run, view in bad)
        words = f"{len(bad)} of {total} points are not valid. They are drawn hollow, and the verdict ignores them."
        parts.append(f'<div class="banner bad"><details><summary>{words}</summary><ul>{reasons}</ul></details></div>')
    else:
        words = f"All {total} points are valid: requests sent on time, generator not busy, throughput steady, token counts exact."
        parts.append(f'<div class="banner good"><p>{words}</p></div>')
    for run in content.runs:
        if run.analysis.whole is not None:
            parts.append(f'<p class="note">{html.escape(_sampled(run))}</p>')
    return block("".join(parts))


def _sampled(run: Named) -> str:
    part = f"a sample of {len(run.analysis.recording.records):,} of {run.analysis.sent:,} requests"
    return f"{run.name}: inter-token latency and output tokens over time show {part}. All other figures are those of all requests."


def _where(content: Content, run: Named, view: View) -> str:
    name = f"{run.name}, " if len(content.runs) > 1 else ""
    return f"{name}{view.point.target}, {view.point.load}, prompt {view.point.prompt}"


def _in_short(run: Named) -> str:
    told = run.analysis.recording.run.provenance
    engine, host = told.get("engine") or {}, told.get("host") or {}
    device = ", ".join(host.get("gpus") or []) or host.get("cpu") or "?"
    return f"{run.name}: {engine.get('name', 'a server')} {engine.get('version', '')} on {device}, {run.analysis.recording.run.started}"


def _facts(run: Named) -> str:
    recording = run.analysis.recording.run
    told = recording.provenance
    host = told.get("host") or {}
    memory = (host.get("memory_bytes") or 0) / 2**30
    facts = {
        "command": recording.command,
        "versions": ", ".join(f"{name} {version}" for name, version in (told.get("versions") or {}).items()),
        "python": told.get("python"),
        "revision": told.get("revision"),
        "engine": told.get("engine"),
        "engine arguments": told.get("engine_args") or "none",
        "host": f"{host.get('cpu')}, {host.get('cpus')} CPUs, {memory:.0f} GiB, load {host.get('load_average')}",
        "GPU and driver": f"{', '.join(host.get('gpus') or []) or 'none'}, {host.get('driver') or 'no driver'}",
        "workload": recording.workload,
        "generator's ceiling, tokens/s": recording.ceiling or "not measured",
        "SLO": f"TTFT {recording.promise.ttft or '-'} s, TPOT {recording.promise.tpot or '-'} s",
    }
    return '<dl class="facts">' + "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items()) + "</dl>"


def verdicts(content: Content) -> Div:
    """Return each sweep's verdict, with its evidence and advice."""
    parts = []
    for series in content.sweeps:
        found = series.sweep.saturation
        if found is not None:
            lines = "".join(f"<li>{html.escape(line)}</li>" for line in (f"Evidence {found.evidence}.", *found.advice))
            parts.append(f'<div class="verdict" style="border-color:{series.colour}">{html.escape(found.verdict)}<ul>{lines}</ul></div>')
    return block("".join(parts) or '<div class="verdict">No sweep over concurrencies, so there is no verdict on saturation.</div>')


def tiles(content: Content) -> Div:
    """Return the most important figures of each sweep."""
    parts = []
    for series in content.sweeps:
        if len(content.sweeps) > 1:
            parts.append(f'<p class="soft" style="color:{series.colour}">{html.escape(series.label)}</p>')
        cells = "".join(
            f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>' for name, value in _tiles(series)
        )
        parts.append(f'<div class="tiles">{cells}</div>')
    return block("".join(parts))


def _tiles(series: Series) -> list[tuple[str, str]]:
    views, verdict = series.sweep.views, series.sweep.saturation
    knee = verdict.knee if verdict is not None else None
    best = max(views, key=lambda view: view.summary.tokens_per_second)
    # The working point is the load nearest to the knee: where an operator would run.
    working = min(views, key=lambda view: abs((view.point.concurrency or 0) - knee.concurrency)) if isinstance(knee, Knee) else best
    found = [("highest output tokens/s, at " + best.point.load, f"{best.summary.tokens_per_second:,.0f}")]
    interval = f"{knee.concurrency:.0f} [{knee.low:.0f}, {knee.high:.0f}]" if isinstance(knee, Knee) else "not found"
    found.append(("knee (concurrency)", interval))
    found.append(("limited by", verdict.cause.name if verdict is not None and verdict.cause is not None else "-"))
    for name in ("p50", "p99"):
        distribution = working.summary.ttft
        found.append((f"TTFT {name} at {working.point.load}", milliseconds(distribution.at(name))))
    found.append((f"TPOT p50 at {working.point.load}", milliseconds(working.summary.tpot.at("p50"))))
    if working.summary.attainment is not None:
        found.append((f"met the SLO at {working.point.load}", f"{working.summary.attainment:.1%}"))
    return found


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None or not math.isfinite(seconds) else f"{seconds * 1000:,.1f} ms"


HEADS = ["target", "load", "prompt", "requests", "ok", "tokens/s", "requests/s", "goodput/s"]
HEADS += ["TTFT p50", "TTFT p95", "TTFT p99", "ITL p50", "ITL p99", "TPOT p50", "E2E p50", "E2E p99", "valid"]


def _row(view: View) -> list[str]:
    point, summary = view.point, view.summary
    counts = [point.target, point.load, point.prompt, str(summary.requests), str(summary.outcomes.get("ok", 0))]
    goodput = "-" if summary.goodput_per_second is None else f"{summary.goodput_per_second:.2f}"
    rates = [f"{summary.tokens_per_second:,.1f}", f"{summary.requests_per_second:.2f}", goodput]
    figures = [(summary.ttft, "p50"), (summary.ttft, "p95"), (summary.ttft, "p99"), (summary.itl, "p50"), (summary.itl, "p99")]
    figures += [(summary.tpot, "p50"), (summary.e2e, "p50"), (summary.e2e, "p99")]
    times = ["-" if (value := distribution.at(name)) is None else f"{value * 1000:,.1f}" for distribution, name in figures]
    return [*counts, *rates, *times, "yes" if view.valid else "; ".join(view.faults)]


def table(content: Content) -> Div:
    """Return a table of every point of every run, latencies in milliseconds."""
    parts = []
    for run in content.runs:
        if len(content.runs) > 1:
            parts.append(f"<h2>{html.escape(run.name)}</h2>")
        heads = "".join(f"<th>{name}</th>" for name in HEADS)
        rows = "".join("<tr>" + "".join(_cell(text) for text in _cells(view)) + "</tr>" for view in run.analysis.views)
        parts.append(f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>')
    if content.reference is not None:
        parts.append(f"<h2>{html.escape(content.reference.name)}</h2>" + _reference(content))
    return block(
        "".join(parts)
        + '<p class="note">Latencies in ms, measured from the intended send. "-" means too few requests for the percentile.</p>'
    )


def _cells(view: View) -> list[str]:
    """Return the row without the reasons, which the head of the page lists."""
    *cells, _ = _row(view)
    return [*cells, "yes" if view.valid else "no"]


def _cell(text: str) -> str:
    return f"<td>{html.escape(text)}</td>"


def _reference(content: Content) -> str:
    reference = content.reference
    assert reference is not None
    heads = "<tr><th>concurrency</th><th>tokens/s</th><th>TTFT p99</th></tr>"
    triples = zip(reference.concurrency, reference.tokens_per_second, reference.ttft_p99, strict=True)
    rows = "".join(f"<tr><td>{level}</td><td>{rate:,.1f}</td><td>{time * 1000:,.1f}</td></tr>" for level, rate, time in triples)
    return f"<table>{heads}{rows}</table>"


def files(content: Content) -> Div:
    """Return the points as CSV and the run's files, embedded in the page if they are small."""
    again = "<code>python -m reports build</code> builds the page from them"
    parts = [f"<p>Every figure on this page is derived from these files; {again}.</p><ul>"]
    for run in content.runs:
        parts.append(_link(f"{run.name}.points.csv", _csv([HEADS, *(_row(view) for view in run.analysis.views)]), "text/csv"))
        beside = [requests_path(run.path), samples_path(run.path), *([summary_path(run.path)] if run.analysis.whole else [])]
        for path in (run.path, *beside):
            data = path.read_bytes()
            if len(data) <= MAX_EMBEDDED_BYTES:
                parts.append(_link(path.name, data, "application/octet-stream"))
            else:
                parts.append(f"<li>{html.escape(path.name)}: {len(data) / 2**20:.0f} MiB, too large to embed</li>")
    return block("".join(parts) + "</ul>")


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _link(name: str, data: bytes, kind: str) -> str:
    address = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<li><a download="{html.escape(name)}" href="{address}">{html.escape(name)}</a> ({len(data) / 1024:,.0f} KiB)</li>'
