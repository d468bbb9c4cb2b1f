"""Traces across services: what a client says that its request is part of, and where this server's own part of it goes."""

import argparse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from llmserve.exporters.opentelemetry import OpenTelemetry

# W3C's Trace Context. A `traceparent` has 55 characters in its version 0, and nobody needs to pass on more than 512 of a `tracestate`.
TRACE_HEADERS = ("traceparent", "tracestate")
MAX_VALUE = 512
# The exporters' own bound, and a second.
CLOSE_SECONDS = 6.0


def trace_of(values: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """A request's trace headers, from all values that it has under a name. What is not well-formed counts as not sent, as W3C wants."""
    found = {name: ",".join(values(name)) for name in TRACE_HEADERS}
    if not 55 <= len(found["traceparent"]) <= MAX_VALUE or not found["traceparent"].isascii():
        return {}
    return {name: value for name, value in found.items() if 0 < len(value) <= MAX_VALUE and value.isascii()}


def trace_of_mapping(values: Mapping[str, str]) -> dict[str, str]:
    """The same where each name has one value."""
    return trace_of(lambda name: [values[name]] if name in values else [])


@asynccontextmanager
async def telemetry(options: argparse.Namespace, model: str) -> AsyncIterator["OpenTelemetry | None"]:
    """What `--otlp-endpoint` asks for, until everything of it has been sent; None where it asks for nothing. Raises ConfigurationError."""
    if options.otlp_endpoint is None:
        yield None
        return
    from llmserve.exporters.opentelemetry import OpenTelemetry

    tracer = OpenTelemetry.open(options.otlp_endpoint, model=model, provider=options.engine)
    try:
        yield tracer
    finally:
        # In a thread, which is left behind if the collector keeps it.
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await anyio.to_thread.run_sync(tracer.close, abandon_on_cancel=True)
