"""Two hosts with their own Ray, as network namespaces: one becomes unreachable, one dies."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from frontends.cluster.ingress import SILENT_SECONDS

ROOT = Path(__file__).parents[2]
# Unique to this test run, so that parallel runs do not interfere.
HERE = os.getpid() % 250
BRIDGE, ADDRESSES = f"llmbr{HERE}", [f"10.219.{HERE}.{number}" for number in (1, 2)]
HOSTS, LINKS = [f"llmh{HERE}-{number}" for number in (1, 2)], [f"llmv{HERE}-{number}" for number in (1, 2)]
PORT = 8100
BODY = {"prompt": "hello", "max_tokens": 8}


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).stdout


def on(host, *command, **more):
    """Run a program of this environment on the host."""
    words = ["ip", "netns", "exec", host, str(Path(sys.executable).parent / command[0]), *command[1:]]
    extra = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": f"{ADDRESSES[0]}:6379", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=os.environ | extra, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, **more)


def run_on(host, *command):
    assert on(host, *command).wait(60) == 0, command


def kill(host):
    """Kill all processes of the host."""
    if pids := ip("netns", "pids", host, check=False).split():
        subprocess.run(["kill", "-9", *pids], check=False, capture_output=True)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Yield two replicas on two hosts, behind the first host's ingress."""
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"10.219.{HERE}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host, link, address in zip(HOSTS, LINKS, ADDRESSES, strict=True):
            ip("netns", "add", host)
            ip("link", "add", link, "type", "veth", "peer", "name", "e0", "netns", host)
            ip("link", "set", link, "master", BRIDGE, "up")
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "e0")
            for device in ("e0", "lo"):
                ip("-n", host, "link", "set", device, "up")
        started = ("ray", "start", "--num-cpus=2", f"--object-store-memory={2**27}", "--disable-usage-stats")
        folder = tmp_path_factory.getbasetemp()
        head, other = (f"--node-ip-address={address}" for address in ADDRESSES)
        run_on(HOSTS[0], *started, head, "--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder}")
        run_on(HOSTS[1], *started, other, f"--address={ADDRESSES[0]}:6379")
        run_on(HOSTS[0], "serve", "start", "--http-host=0.0.0.0", "--http-port=8000")
        words = ("engine=simulated", "model=sim", "replicas=2", "replica_cpus=1.5", "drain_timeout=1", "host=0.0.0.0", "insecure=true")
        run_on(HOSTS[0], "serve", "run", "--non-blocking", "frontends.ray_app:build", *words)
        yield f"http://{ADDRESSES[0]}:{PORT}"
    finally:
        for host in HOSTS:
            kill(host)
            ip("netns", "del", host, check=False)
        for link in (*LINKS, BRIDGE):
            ip("link", "del", link, check=False)


def sent_on(host):
    """Return the bytes that the server of a host's replica has sent on each ingress's connection.

    Neither Ray nor a client probes its connections (keepalive), and clients are connected to PORT.
    """
    lines = ip("netns", "exec", host, "ss", "-HtnoiO", "state", "established").splitlines()
    ours = [line.split() for line in lines if "keepalive" in line and f":{PORT}" not in line.split()[2]]
    return {words[3]: next(word for word in words if word.startswith("bytes_sent:")) for words in ours}


async def has_stream(host):
    """Return whether a stream is open on a host: an idle connection sends nothing."""
    before = sent_on(host)
    await asyncio.sleep(0.2)
    return any(sent != before.get(peer, sent) for peer, sent in sent_on(host).items())


class Load:
    """Streams that are open on both hosts, with short requests all the time."""

    def __init__(self, session):
        self.session = session
        self.ends = []
        self.short = []

    async def stream(self, begun):
        body = {**BODY, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with self.session.post("/v1/completions", json=body) as response:
            events = [await response.content.readline()]
            begun.release()
            events += [line async for line in response.content if line.strip()]
        assert events[-1] == b"data: [DONE]\n"
        self.ends.append("lost" if b"engine_restarted" in events[-2] else "whole")

    async def ask(self):
        async with self.session.post("/v1/completions", json=BODY) as response:
            self.short.append((response.status, await response.text()))

    async def around(self, event, seconds):
        """Trigger `event` when streams are open on both hosts, then send requests for a while."""
        begun = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as tasks:
            async with asyncio.timeout(60):
                # The router does not use an unreachable replica immediately after its return.
                while not all([await has_stream(host) for host in HOSTS]):
                    tasks.create_task(self.stream(begun))
                    await begun.acquire()
            event()
            for _ in range(int(seconds / 0.1)):
                tasks.create_task(self.ask())
                await asyncio.sleep(0.1)
        assert {status for status, _ in self.short} == {200}, [text for status, text in self.short if status != 200][:1]
        assert sorted(set(self.ends)) == ["lost", "whole"]


@pytest.fixture
async def load(url):
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Load(session)


async def replicas(session):
    """Return the replicas whose metrics are in `/metrics`."""
    async with session.get("/metrics", headers={"Accept": "text/plain"}) as response:
        assert response.status == 200
        text = await response.text()
    return {line.split('replica="')[1].split('"')[0] for line in text.splitlines() if 'replica="' in line}


async def test_an_unreachable_host_only_loses_its_own_requests(load):
    """A regression: streams ended after a minute; requests and metrics failed until 12 s later."""
    # Ray itself would detect it after a minute.
    async with asyncio.timeout(SILENT_SECONDS + 30):
        await load.around(lambda: ip("link", "set", LINKS[1], "down"), seconds=8)
    async with load.session.get("/metrics.json") as response:
        assert response.status == 200
        counted = json.loads(await response.text())["requests"]
    assert counted["completed"] >= len(load.short)
    ip("link", "set", LINKS[1], "up")
    async with asyncio.timeout(60):
        while len(await replicas(load.session)) < 2:
            await asyncio.sleep(0.5)


async def test_a_dead_host_only_loses_its_own_requests(load):
    """A regression: both ingresses were on one host, whose death ended the other host's streams."""
    await load.around(lambda: kill(HOSTS[1]), seconds=3)
