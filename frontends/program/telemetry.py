"""Where this server's own part of a trace goes."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from llmserve.observability.opentelemetry import OpenTelemetry

# The exporters' own bound, and a second.
CLOSE_SECONDS = 6.0


@asynccontextmanager
async def telemetry(options: argparse.Namespace, model: str) -> AsyncIterator["OpenTelemetry | None"]:
    """What `--otlp-endpoint` asks for, until everything of it has been sent; None where it asks for nothing. Raises ConfigurationError."""
    if options.otlp_endpoint is None:
        yield None
        return
    from llmserve.observability.opentelemetry import OpenTelemetry

    tracer = OpenTelemetry.open(options.otlp_endpoint, model=model, provider=options.engine)
    try:
        yield tracer
    finally:
        # In a thread, which is left behind if the collector keeps it.
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await anyio.to_thread.run_sync(tracer.close, abandon_on_cancel=True)
