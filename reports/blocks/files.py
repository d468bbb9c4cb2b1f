"""The points as CSV and the run's files, embedded in the page."""

import base64
import html

from bokeh.models import Div

from benchmarks.analysis.table import as_csv
from benchmarks.recording.storage import requests_path, samples_path, summary_path
from reports.page_data import Content
from reports.theme import block

# Larger files are only named, because a page of tens of megabytes hardly opens.
MAX_EMBEDDED_BYTES = 4 * 2**20


def files(content: Content) -> Div:
    """Return the points as CSV and the run's files, embedded in the page if they are small."""
    again = "<code>python -m reports build</code> builds the page from them"
    parts = [f"<p>Every figure on this page is derived from these files; {again}.</p><ul>"]
    for run in content.runs:
        parts.append(_link(f"{run.name}.points.csv", as_csv(run.analysis).encode(), "text/csv"))
        beside = [requests_path(run.path), samples_path(run.path), *([summary_path(run.path)] if run.analysis.whole else [])]
        for path in (run.path, *beside):
            data = path.read_bytes()
            if len(data) <= MAX_EMBEDDED_BYTES:
                parts.append(_link(path.name, data, "application/octet-stream"))
            else:
                parts.append(f"<li>{html.escape(path.name)}: {len(data) / 2**20:.0f} MiB, too large to embed</li>")
    return block("".join(parts) + "</ul>")


def _link(name: str, data: bytes, kind: str) -> str:
    address = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<li><a download="{html.escape(name)}" href="{address}">{html.escape(name)}</a> ({len(data) / 1024:,.0f} KiB)</li>'
