"""A table of every point of every run."""

import html
from collections.abc import Sequence

from bokeh.models import Div

from benchmarks.analysis.table import ADAPTER_HEADINGS, adapter_rows, columns
from reports.page_data import Content
from reports.reference import Reference
from reports.theme import block

NOTE = 'Latencies are measured from the intended send. "-" means too few requests for the percentile.'
ANSWERED = "Answered are the complete answers; those that met the SLO are counted beside them."


def table(content: Content) -> Div:
    """Return a table of every point of every run, with its failures; latencies are in milliseconds."""
    parts = []
    for run in content.runs:
        if len(content.runs) > 1:
            parts.append(f"<h2>{html.escape(run.name)}</h2>")
        shown = columns(run.analysis)
        rows = [[column.text(view) for column in shown] for view in run.analysis.views]
        parts.append(_table([column.heading for column in shown], rows))
        if adapters := adapter_rows(run.analysis):
            parts.append(_table(ADAPTER_HEADINGS, adapters))
        parts += [_list(head, lines) for head, lines in run.analysis.remarks.items()]
    if content.reference is not None:
        parts.append(f"<h2>{html.escape(content.reference.name)}</h2>" + _reference(content.reference))
    promised = any(view.summary.attainment is not None for _, view in content.views)
    return block("".join(parts) + f'<p class="note">{NOTE}{" " + ANSWERED if promised else ""}</p>')


def _reference(reference: Reference) -> str:
    triples = zip(reference.concurrency, reference.tokens_per_second, reference.ttft_p99, strict=True)
    rows = [[str(level), f"{rate:,.1f}", f"{time * 1000:,.1f}"] for level, rate, time in triples]
    return _table(["concurrency", "tokens/s", "TTFT p99 (ms)"], rows)


def _list(heading: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<p>{html.escape(heading)}:</p><ul>{items}</ul>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
