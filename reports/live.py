"""Follows a live server's engine through /metrics: ours or vLLM's."""

import time
from urllib.parse import urlsplit

from bokeh.document import Document
from bokeh.models import Column, ColumnDataSource, Div, Row, TextInput, Toggle, UIElement
from bokeh.plotting import figure
from tornado.httpclient import AsyncHTTPClient

from benchmarks.recording.prometheus_text import parse_metrics
from reports.charts.axes import legend
from reports.charts.figures import chart
from reports.theme import PALETTE, STYLE

INTERVAL_MS = 1000
# Ten minutes at one sample a second.
MAX_POINTS = 600
FIELDS = ("running", "waiting", "admission_waiting", "kv_usage", "tokens_per_second")


class Live:
    """One page's view of one server; sends no request before the reader presses the button."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._source = ColumnDataSource({name: [] for name in ("time", *FIELDS)})
        self._address = TextInput(title="Server", value="http://127.0.0.1:8000", width=320)
        self._follow = Toggle(label="follow", width=100, align="end")
        self._follow.on_change("active", self._toggled)
        self._state = Div(text="", stylesheets=[STYLE], align="end")
        self._began = time.monotonic()
        self._last: tuple[float, int] | None = None
        self._callback: object | None = None

    def panel(self) -> UIElement:
        """Return the controls, and three charts on one time axis."""
        requests = self._chart("Requests in the engine", "requests", {"running": "running", "waiting": "waiting in the engine"})
        requests.line("time", "admission_waiting", source=self._source, color=PALETTE[4], legend_label="waiting for admission")
        cache = self._chart("KV cache", "share", {"kv_usage": "in use"}, x_range=requests.x_range, y_range=(0, 1.02))
        rate = self._chart("Output tokens", "tokens/s", {"tokens_per_second": "generated"}, x_range=requests.x_range)
        for found in (requests, cache, rate):
            legend(found)
        controls = Row(children=[self._address, self._follow, self._state])
        return Column(children=[controls, requests, cache, rate], sizing_mode="stretch_width", spacing=18)

    def _chart(self, title: str, unit: str, lines: dict[str, str], **ranges: object) -> figure:
        found = chart(title, "s", unit, height=170, **ranges)
        if "x_range" not in ranges:
            found.x_range.follow = "end"
            found.x_range.follow_interval = 120
        for colour, (name, label) in zip(PALETTE, lines.items(), strict=False):
            found.line("time", name, source=self._source, color=colour, line_width=2, legend_label=label)
        return found

    def _toggled(self, _: str, __: bool, on: bool) -> None:  # noqa: FBT001 - Bokeh calls it so
        if on and urlsplit(self._address.value).scheme not in ("http", "https"):
            self._state.text = f"<p class='bad'>{self._address.value!r} is not a URL: write http://HOST:PORT</p>"
            self._follow.active = False
        elif on:
            self._callback = self._document.add_periodic_callback(self._poll, INTERVAL_MS)
        elif self._callback is not None:
            self._document.remove_periodic_callback(self._callback)
            self._callback, self._last = None, None

    async def _poll(self) -> None:
        address = f"{self._address.value.rstrip('/')}/metrics"
        try:
            response = await AsyncHTTPClient().fetch(address, headers={"Accept": "text/plain"}, request_timeout=INTERVAL_MS / 1000)
            fields = parse_metrics(response.body.decode())
        except Exception as error:
            # Refused, reset, timed out or not text: show the error to the reader and try again.
            self._state.text = f"<p class='bad'>{address}: {error}</p>"
            return
        now = time.monotonic()
        tokens = fields.get("generation_tokens")
        rate = None
        if tokens is not None:
            rate = (tokens - self._last[1]) / (now - self._last[0]) if self._last else None
            self._last = (now, tokens)
        row = {**{name: fields.get(name) for name in FIELDS}, "tokens_per_second": rate, "time": now - self._began}
        self._source.stream({name: [float("nan") if value is None else float(value)] for name, value in row.items()}, rollover=MAX_POINTS)
        self._state.text = "<p class='good'>following</p>" if fields else f"<p class='bad'>{address} has no metrics of an engine</p>"
