"""The export of this server's traces and metrics to an OpenTelemetry collector."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from llmserve.observability.opentelemetry import OpenTelemetry

# The exporters' own time limit, plus a second.
CLOSE_SECONDS = 6.0


@asynccontextmanager
async def telemetry(options: argparse.Namespace, model: str) -> AsyncIterator["OpenTelemetry | None"]:
    """Yield a tracer for `--otlp-endpoint`, or None without that option; flush it at the end.

    Raises ConfigurationError.
    """
    if options.otlp_endpoint is None:
        yield None
        return
    from llmserve.observability.opentelemetry import OpenTelemetry

    tracer = OpenTelemetry.open(options.otlp_endpoint, model=model, provider=options.engine)
    try:
        yield tracer
    finally:
        # In a thread, which is abandoned if the collector does not answer.
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await anyio.to_thread.run_sync(tracer.close, abandon_on_cancel=True)
