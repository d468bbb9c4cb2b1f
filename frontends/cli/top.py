"""`llmserve top URL`: a live view of a running server in the terminal, from its /metrics.

A server of vLLM's own shows the figures that it has. `view` draws any two scrapes, for programs
that embed llmserve.
"""

import argparse
import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import aiohttp
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frontends.cli.remote import CannotCall, Server, add_server_arguments, plain
from frontends.cli.scrape import Scrape, quantile, rate, rates
from frontends.options.suggestions import Parser

# Seconds between two scrapes, seconds over which rates and quantiles count, and points of a curve.
EVERY, WINDOW, CURVE = 1.0, 10.0, 30
BLOCKS = "▁▂▃▄▅▆▇█"
# Each line of the load: its name, its series and how to write its value. A counter is shown per second.
LOAD = (
    ("running", "llmserve_requests_running", "{:,.0f}"),
    ("waiting", "llmserve_requests_waiting", "{:,.0f}"),
    ("output tokens/s", "llmserve_completion_tokens_total", "{:,.0f}"),
    ("prompt tokens/s", "llmserve_prompt_tokens_total", "{:,.0f}"),
    ("KV cache in use", "llmserve_engine_kv_usage", "{:.0%}"),
    ("preemptions/s", "llmserve_engine_preemptions_total", "{:,.1f}"),
)
TIMES = {
    "time to first token": "llmserve_time_to_first_token_seconds",
    "between tokens": "llmserve_inter_token_latency_seconds",
    "in the queue": "llmserve_queue_seconds",
    "whole request": "llmserve_request_seconds",
}


def view(scrapes: Sequence[Scrape], title: str = "") -> RenderableType:
    """Draw the newest scrape, and what changed since the oldest one within the window."""
    now = scrapes[-1]
    before = next(scrape for scrape in scrapes if scrape is now or now.at - scrape.at <= WINDOW)
    parts = (_head(now, title), _load(scrapes, before), _latencies(now, before), _requests(now, before), _tenants(now, before))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts if part is not None))


def _head(now: Scrape, title: str) -> RenderableType:
    line = Text(plain(title), style="bold", no_wrap=True, overflow="ellipsis")
    ready = now.total("llmserve_ready")
    if ready is not None:
        line.append("  ready" if ready else "  refuses requests now", style="green" if ready else "red")
    if restarts := now.total("llmserve_engine_restarts_total"):
        line.append(f"  {restarts:.0f} engine restarts", style="yellow")
    return line


def _load(scrapes: Sequence[Scrape], before: Scrape) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=20)
    table.add_column(justify="right", min_width=9)
    table.add_column(no_wrap=True)
    for name, series, text in LOAD:
        counts = series.endswith("_total")
        value = rate(scrapes[-1], before, series) if counts else scrapes[-1].total(series)
        points = [rate(new, old, series) if counts else new.total(series) for old, new in pairwise(scrapes)]
        table.add_row(name, "-" if value is None else text.format(value), Text(_curve(points[-CURVE:]), style="cyan"))
    return table


def _latencies(now: Scrape, before: Scrape) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=20)
    for _ in range(3):
        table.add_column(justify="right", min_width=9)
    table.add_row("", *(Text(name, style="dim") for name in ("p50", "p90", "p99")))
    for name, series in TIMES.items():
        table.add_row(name, *(_seconds(quantile(now, before, series, share)) for share in (0.5, 0.9, 0.99)))
    return table


def _requests(now: Scrape, before: Scrape) -> RenderableType | None:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=20)
    table.add_column()
    outcomes = rates(now, before, "llmserve_requests_total", "outcome")
    table.add_row("requests/s", _listed(outcomes, "{:,.1f}") or "none")
    table.add_row("refused/s", _listed(rates(now, before, "llmserve_refused_total", "reason"), "{:,.1f}") or "none")
    held = rates(now, before, "llmserve_held_total", "constraint")
    whole = sum(held.values())
    table.add_row("queue held by", _listed({name: part / whole for name, part in held.items()}, "{:.0%}") or "nothing")
    return table if now.total("llmserve_requests_total") is not None else None


def _tenants(now: Scrape, before: Scrape) -> RenderableType | None:
    tokens, requests = (rates(now, before, f"llmserve_tenant_{name}_total", "tenant") for name in ("tokens", "requests"))
    if len(now.by("llmserve_tenant_requests_total", "tenant")) < 2:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=20, no_wrap=True, overflow="ellipsis")
    for _ in range(2):
        table.add_column(justify="right", min_width=9)
    table.add_row(*(Text(name, style="dim") for name in ("tenant", "requests/s", "tokens/s")))
    for tenant in sorted(now.by("llmserve_tenant_requests_total", "tenant"), key=lambda name: -tokens.get(name, 0.0))[:10]:
        table.add_row(Text(plain(tenant)), f"{requests.get(tenant, 0.0):,.1f}", f"{tokens.get(tenant, 0.0):,.0f}")
    return table


def _listed(values: dict[str, float], text: str) -> Text:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    return Text(plain(", ".join(f"{name} {text.format(value)}" for name, value in ordered)))


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _curve(points: Sequence[float | None]) -> str:
    most = max((point for point in points if point is not None), default=0.0)
    return "".join(" " if point is None else BLOCKS[round(point / most * (len(BLOCKS) - 1)) if most else 0] for point in points)


async def _scrape(server: Server) -> Scrape:
    try:
        return Scrape.parse(await server.text("metrics"), time.monotonic())
    except ValueError:
        raise CannotCall(f"{server.url}/metrics is no text of Prometheus") from None


async def _watch(server: Server, console: Console) -> None:
    """Draw until Ctrl-C. Raises CannotCall if the first scrape fails; later ones are tried again."""
    scrapes = deque([await _scrape(server)], maxlen=int(max(WINDOW, CURVE) / EVERY) + 2)
    title = f"{await server.model()} at {server.url}"
    note = Text(f"rates and times over {WINDOW:g} s; Ctrl-C ends", style="dim")
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(view(scrapes, title), note), refresh=True)
            await asyncio.sleep(EVERY)
            try:
                scrapes.append(await _scrape(server))
                note = Text(f"rates and times over {WINDOW:g} s; Ctrl-C ends", style="dim")
            except CannotCall as error:
                note = Text(f"{error}; trying again", style="red")


async def _once(server: Server, console: Console) -> None:
    scrapes = [await _scrape(server)]
    await asyncio.sleep(EVERY)
    scrapes.append(await _scrape(server))
    console.print(view(scrapes, f"{await server.model()} at {server.url}"))


async def _run(url: str, key: str | None, *, once: bool) -> None:
    console = Console()
    async with aiohttp.ClientSession() as session:
        await (_once if once or not console.is_terminal else _watch)(Server(session, url, key), console)


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description="Watch a running server in the terminal.")
    add_server_arguments(parser)
    parser.add_argument("--once", action="store_true", help="print the figures once, after a second, and exit")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "llmserve top") -> int:
    """Run `llmserve top`; return 0, or 2 if the server cannot be reached."""
    options = build_parser(prog).parse_args(argv)
    try:
        asyncio.run(_run(options.url, options.api_key, once=options.once))
    except KeyboardInterrupt:
        return 0
    except CannotCall as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2
    return 0
