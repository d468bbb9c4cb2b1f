"""The export of this server's traces and metrics to an OpenTelemetry collector."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from frontends.program.settings import ServerSettings

if TYPE_CHECKING:
    from llmserve.observability.opentelemetry import OpenTelemetry

# The exporters' own time limit, plus a second.
CLOSE_SECONDS = 6.0


@asynccontextmanager
async def telemetry(settings: ServerSettings) -> AsyncIterator["OpenTelemetry | None"]:
    """Yield a tracer for `--otlp-endpoint`, or None without that option; flush it at the end.

    Raises ConfigurationError.
    """
    endpoint, engine = settings.observability.otlp_endpoint, settings.engine
    if endpoint is None:
        yield None
        return
    from llmserve.observability.opentelemetry import OpenTelemetry

    tracer = OpenTelemetry.open(endpoint, model=engine.name, provider=engine.kind)
    try:
        yield tracer
    finally:
        # In a thread, which is abandoned if the collector does not answer.
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await anyio.to_thread.run_sync(tracer.close, abandon_on_cancel=True)
