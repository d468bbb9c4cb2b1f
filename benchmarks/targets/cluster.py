"""A cluster on a local Ray, and one server with the same engine without Ray.

`python -m benchmarks.targets.cluster ARGUMENTS-OF-A-CLUSTER` runs a cluster until SIGTERM.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio

from benchmarks.targets import TargetError
from benchmarks.targets.server import is_healthy
from frontends.cluster.settings import from_words
from frontends.net.listeners import bind

START_SECONDS = 60.0
# How often replicas report to the autoscaler. Ray reads it at its start; Ray's default is 10 s.
PUSH_SECONDS = "1"


def free_port() -> int:
    with bind("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def local_ray() -> Iterator[str]:
    """Start Ray Serve and yield its URL. Raises TargetError."""
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", PUSH_SECONDS)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise TargetError(f"Ray cannot be imported ({error}); install llmserve[ray]") from error
    port = free_port()
    # A Ray of its own ("local"), regardless of other ones, with more cores than the machine has,
    # because nothing here computes.
    ray.init("local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@asynccontextmanager
async def deployed(words: dict[str, str]) -> AsyncIterator[str]:
    """Deploy with arguments of `serve run`, and yield the address of the ingress."""
    from ray import serve

    from frontends.ray_app import build

    port = str(free_port())
    await asyncio.to_thread(serve.run, build({**words, "port": port}))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await asyncio.to_thread(serve.delete, "default")


@asynccontextmanager
async def alone(words: dict[str, str]) -> AsyncIterator[str]:
    """Run a server without Ray and yield its address. Raises TargetError."""
    port = free_port()
    command = [sys.executable, "-m", "frontends.aiohttp_app", "--port", str(port), *from_words(words)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        with anyio.fail_after(START_SECONDS):
            while not await is_healthy(f"http://127.0.0.1:{port}"):
                if process.returncode is not None:
                    raise TargetError(f"the server ended with {process.returncode}")
                await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main(arguments: list[str]) -> None:
    from ray import serve

    from frontends.ray_app import application

    with local_ray():
        serve.run(application(arguments))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
