"""A local Ray for all tests of a session, and applications on it."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress

import aiohttp
import anyio
import psutil
import pytest


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def ray_url():
    """Return the address at which Ray Serve listens."""
    # Interval at which replicas report to the autoscaler. Ray reads it at its start; its default is
    # 10 s.
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    # A cluster for this test alone, which no other program can reach.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    port = free_port()
    # Nothing here is large, but by default Ray reserves a third of the memory for objects.
    # "local" starts our own cluster, even if another one runs on this machine.
    ray.init("local", num_cpus=8, object_store_memory=2**28, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


class Cluster:
    """A running application as its clients see it. The paths of `session` are relative to it."""

    def __init__(self, url, session):
        self.url = url
        self.session = session

    async def post(self, path, body, **more):
        """Return the status, the decoded body and the headers."""
        async with self.session.post(path, json=body, **more) as response:
            return response.status, await response.json(), response.headers

    async def metrics(self):
        async with self.session.get("/metrics.json") as response:
            return await response.json()

    async def until(self, wanted, seconds=30):
        """Return the metrics as soon as they satisfy the condition."""
        with anyio.fail_after(seconds):
            while not wanted(found := await self.metrics()):
                await asyncio.sleep(0.02)
        return found


@pytest.fixture(scope="session")
def deploy(ray_url):
    """Deploy with arguments of `serve run frontends.ray_app:build`: `deploy(replicas="2")`.

    Clients connect to the ingress, or to Ray Serve's proxy.
    """
    from ray import serve

    from frontends.ray_app import build

    @asynccontextmanager
    async def deploying(engine="simulated", model="sim", *, by_proxy=False, **words):
        port = free_port()
        app = build({"engine": engine, "model": model, "replica_cpus": "0.1", "drain_timeout": "1", "port": str(port), **words})
        await asyncio.to_thread(serve.run, app)
        url = ray_url if by_proxy else f"http://127.0.0.1:{port}"
        try:
            async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
                yield Cluster(url, session)
        finally:
            await asyncio.to_thread(serve.delete, "default")

    return deploying


def replicas():
    """Return the processes of the replicas."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "ServeReplica:default:Replica" in " ".join(process.cmdline()):
                found.append(process)
    return found
