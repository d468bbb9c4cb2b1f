"""What was measured on which machine, and whether it is valid."""

import html

from bokeh.models import Div

from benchmarks.analysis.report import View
from reports.page_data import Content, Named
from reports.theme import block


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
        words = f"{len(bad)} of {total} points are not valid. They are drawn hollow; no verdict, tile or line counts them."
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
    return f"{name}{view.point.name}"


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
