"""The Live tab: a running server's latencies, queue, KV cache, throughput and tenants."""

import html
import math
import time
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

from bokeh.document import Document
from bokeh.models import Column, ColumnDataSource, CustomJS, Div, Row, TextInput, Toggle, UIElement
from bokeh.plotting import figure
from tornado.httpclient import AsyncHTTPClient

from reports.charts.axes import legend
from reports.charts.figures import chart
from reports.live.readings import QUANTILES, Reading, quantile, rate, read, tenants
from reports.theme import GRID_STYLE, INPUT_STYLE, NARROW, PALETTE, STYLE

INTERVAL_MS = 1000
# Ten minutes at one reading a second.
MAX_POINTS = 600
# Readings behind a percentile and behind a tenant's rates: one interval has few requests.
SPAN = 10
MAX_TENANTS = 20
DEFAULT = "http://127.0.0.1:8000"
GAUGES = ("running", "waiting", "admission_waiting", "kv_usage")
LATENCIES = {"ttft": "Time to first token", "itl": "Inter-token latency", "queue": "Wait in the queue"}
# The address of the page names the followed server, so that it can be linked to.
LINK = """
const address = new URL(window.location)
address.searchParams.set("live", server.value)
window.history.replaceState(null, "", address)
"""


class Live:
    """One page's view of one server; sends no request before the reader presses the button.

    It follows a server at once only if the operator of the reports named it (`trusted`), because
    a link may name any address that this machine reaches. For the same reason only those get the
    key.
    """

    def __init__(self, document: Document, address: str = "", trusted: Sequence[str] = (), api_key: str | None = None) -> None:
        self._document = document
        self._trusted, self._api_key = trusted, api_key
        self._source = ColumnDataSource({name: [] for name in ("time", *_columns())})
        address = address or (trusted[0] if trusted else DEFAULT)
        self._address = TextInput(title="Server", value=address, max_width=320, sizing_mode="stretch_width", stylesheets=[INPUT_STYLE])
        self._follow = Toggle(label="follow", width=100, align="end")
        self._follow.on_change("active", self._toggled)
        self._follow.js_on_change("active", CustomJS(args={"server": self._address}, code=LINK))
        self._state = Div(text="", stylesheets=[STYLE], align="end")
        self._tenants = Div(text="", sizing_mode="stretch_width", stylesheets=[STYLE])
        self._began = time.monotonic()
        self._readings: deque[Reading] = deque(maxlen=SPAN + 1)
        self._callback: object | None = None
        if address in trusted:
            self._follow.active = True

    def panel(self) -> UIElement:
        """Return the controls, the charts on one time axis, and the tenants."""
        requests = self._chart(
            "Requests", "requests", {"running": "running", "waiting": "waiting in the engine", "admission_waiting": "waiting for admission"}
        )
        shared = {"x_range": requests.x_range}
        cache = self._chart("KV cache", "share", {"kv_usage": "in use"}, y_range=(0, 1.02), **shared)
        tokens = self._chart("Output tokens", "tokens/s", {"tokens_per_second": "generated"}, **shared)
        latencies = [
            self._chart(title, f"ms, last {SPAN} s", {f"{field}_{name}": name for name in QUANTILES}, **shared)
            for field, title in LATENCIES.items()
        ]
        controls = Row(children=[self._address, self._follow, self._state], sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})
        charts = Column(children=[requests, *latencies, cache, tokens], sizing_mode="stretch_width", stylesheets=[GRID_STYLE])
        return Column(children=[controls, charts, self._tenants], sizing_mode="stretch_width", spacing=18, stylesheets=[NARROW])

    def _chart(self, title: str, unit: str, lines: dict[str, str], **ranges: object) -> figure:
        found = chart(title, "s since the page was opened", unit, height=170, **ranges)
        if "x_range" not in ranges:
            found.x_range.follow = "end"
            found.x_range.follow_interval = 120
        for colour, (name, label) in zip(PALETTE, lines.items(), strict=False):
            found.line("time", name, source=self._source, color=colour, line_width=2, legend_label=label)
        legend(found)
        return found

    def _toggled(self, _: str, __: bool, on: bool) -> None:  # noqa: FBT001 - Bokeh calls it so
        if on and urlsplit(self._address.value).scheme not in ("http", "https"):
            self._say(f"{self._address.value!r} is not a URL: write http://HOST:PORT", good=False)
            self._follow.active = False
        elif on:
            self._callback = self._document.add_periodic_callback(self._poll, INTERVAL_MS)
        elif self._callback is not None:
            self._document.remove_periodic_callback(self._callback)
            self._callback = None
            self._readings.clear()

    def _headers(self) -> dict[str, str]:
        found = {"Accept": "text/plain"}
        if self._api_key is not None and self._address.value in self._trusted:
            found["Authorization"] = f"Bearer {self._api_key}"
        return found

    async def _poll(self) -> None:
        address = f"{self._address.value.rstrip('/')}/metrics"
        try:
            response = await AsyncHTTPClient().fetch(address, headers=self._headers(), request_timeout=INTERVAL_MS / 1000)
            reading = read(response.body.decode(), time.monotonic())
        except Exception as error:
            # Refused, reset, timed out or not text: show the error to the reader and try again.
            self._say(f"{address}: {error}", good=False)
            return
        self._readings.append(reading)
        row = row_of(self._readings) | {"time": reading.time - self._began}
        self._source.stream({name: [value] for name, value in row.items()}, rollover=MAX_POINTS)
        self._tenants.text = tenants_table(self._readings)
        good = bool(reading.fields or reading.histograms)
        self._say("following" if good else f"{address} has no metrics of an engine", good=good)

    def _say(self, text: str, *, good: bool) -> None:
        self._state.text = f"<p class='{'good' if good else 'bad'}'>{html.escape(text)}</p>"


def _columns() -> list[str]:
    return [*GAUGES, "tokens_per_second", *(f"{field}_{name}" for field in LATENCIES for name in QUANTILES)]


def row_of(readings: Sequence[Reading]) -> dict[str, float]:
    """Return one value for each line of the charts, latencies in ms; NaN where nothing is known."""
    first, last = readings[0], readings[-1]
    before = readings[-2] if len(readings) > 1 else last
    row = {name: float(last.fields.get(name, math.nan)) for name in GAUGES}
    row["tokens_per_second"] = rate(before, last, "generation_tokens")
    return row | {f"{field}_{name}": quantile(first, last, field, share) * 1000 for field in LATENCIES for name, share in QUANTILES.items()}


def tenants_table(readings: Sequence[Reading]) -> str:
    """Return the busiest tenants of the last readings as HTML; empty if the server names none."""
    found = tenants(readings[0], readings[-1])
    if not found:
        return ""
    names = {"requests": "requests/s", "refused": "refused/s", "prompt": "prompt tokens/s", "completion": "output tokens/s"}
    heads = "".join(f"<th>{name}</th>" for name in ("tenant", *names.values()))
    shown = list(found.items())[:MAX_TENANTS]
    rows = "".join(
        f"<tr><td>{html.escape(tenant)}</td>" + "".join(f"<td>{figures[name]:,.1f}</td>" for name in names) + "</tr>"
        for tenant, figures in shown
    )
    more = f'<p class="note">{len(found) - len(shown)} more tenants</p>' if len(found) > len(shown) else ""
    return f'<h2>Tenants, last {SPAN} s</h2><div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>{more}'
