"""Measures Ray Serve on this machine with simulated engines: `python -m benchmarks cluster`.

Reports the throughput of two replicas against one, how soon a replica is notified of a disconnected
client, and a flooding tenant's share. Also reports how soon replicas start and stop, and what the
ways through an ingress and through Ray's proxy cost, beside the same engines without Ray.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import numpy as np

from benchmarks.targets.cluster import alone, deployed, local_ray

SLOTS = 8
SIMULATED = {"engine": "simulated", "model": "sim", "drain_timeout": "1"}
REPLICA = {**SIMULATED, "replica_cpus": "0.1"}
# Steps of 22 ms, so that the processes on two cores are not the limit.
SLOW = {"engine_arg": f"max_num_seqs={SLOTS} time_scale=5", "max_running": str(SLOTS), "max_waiting": "200", "max_wait": "60"}
# The usual step law: 4.4 ms per token.
PACED = {"engine_arg": "max_num_seqs=128", "max_running": "0"}
CLIENTS = 40
SECONDS = 10.0
LEAVING = 30
ROUNDS = 3
STREAMS, MANY_STREAMS = 32, 128
BALANCED_AFTER = 5.0
# Enough to fill all slots of both replicas, with as many requests waiting.
SHARERS = 4 * SLOTS


class Carried(msgspec.Struct, kw_only=True):
    """One path to an engine, in milliseconds.

    Attributes:
        ttft: Time to the first token with one stream.
        gap: Time between tokens with one stream.
        streams: Number of streams under load.
        loaded_ttft: Time to the first token with as many streams.
        rate: Tokens per second with as many streams.
    """

    ttft: float
    gap: float
    streams: int
    loaded_ttft: float
    rate: float


class Seen(msgspec.Struct, kw_only=True):
    """All results.

    Attributes:
        capacity: Trials as (replicas, tokens per second).
        left: Milliseconds from a client's disconnect until its engine was free, by kind of request.
        share: The flooding tenant's share of the tokens.
        up: Seconds until three replicas were running under load.
        down: Seconds until one replica was left without load.
        ways: What each way to the same engines carries, by its name.
    """

    capacity: list[tuple[int, float]]
    left: dict[str, list[float]]
    share: float
    up: float
    down: float
    ways: dict[str, list[Carried]]


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    def ask(self, tokens: int, **more: Any) -> Any:
        body = {"prompt": "hello there", "max_tokens": tokens, "ignore_eos": True, **more}
        return self._session.post(f"{self._url}/v1/completions", json=body)

    async def metrics(self) -> dict[str, Any]:
        async with self._session.get(f"{self._url}/metrics.json") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> float:
        """Wait until the metrics are as wanted, and return the time."""
        while not wanted(await self.metrics()):  # noqa: ASYNC110 - another process, which has no event
            await asyncio.sleep(0.005)
        return time.perf_counter()

    async def stream(self, tokens: int) -> list[float]:
        """Return the time of the request, followed by that of each token."""
        times = [time.perf_counter()]
        async with self.ask(tokens, stream=True) as response:
            times += [time.perf_counter() async for line in response.content if line.startswith(b"data: {")]
        return times

    async def flood(self, clients: int, seconds: float, **more: Any) -> float:
        """Return tokens per second of answers within `seconds`; refused clients try again."""
        end, tokens = time.perf_counter() + seconds, 0

        async def one() -> None:
            nonlocal tokens
            while time.perf_counter() < end:
                async with self.ask(50, **more) as response:
                    await response.read()
                    if response.status == 200 and time.perf_counter() < end:
                        tokens += 50
                    elif response.status != 200:
                        await asyncio.sleep(0.2)

        await asyncio.gather(*[one() for _ in range(clients)])
        return tokens / seconds


async def measure(report: Callable[[str], None]) -> Seen:
    """Run all measurements. Raises TargetError."""
    seen = Seen(capacity=[], left={}, share=0.0, up=0.0, down=0.0, ways={})
    with local_ray() as proxy:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for replicas in (1, 2, 1, 2):
                async with deployed({**REPLICA, **SLOW, "replicas": str(replicas)}) as url:
                    client = Client(url, session)
                    await client.flood(CLIENTS, 2)
                    seen.capacity.append((replicas, await client.flood(CLIENTS, SECONDS)))
                report(f"{replicas} replicas: {seen.capacity[-1][1]:.0f} tokens/s")
            async with deployed({**REPLICA, **SLOW, "replicas": "2"}) as url:
                client = Client(url, session)
                for kind in ("stream", "whole"):
                    seen.left[kind] = [await _leave(client, stream=kind == "stream") for _ in range(LEAVING)]
                    report(f"disconnected from a {kind} answer: {np.median(seen.left[kind]):.0f} ms")
            seen.share = await _share(session)
            report(f"a flooding tenant's share: {seen.share:.2f}")
            seen.up, seen.down = await _scale(session)
            report(f"one replica to three: {seen.up:.0f} s; back to one: {seen.down:.0f} s")
            for _ in range(ROUNDS):
                async for name, carried in _ways(proxy, session):
                    seen.ways.setdefault(name, []).append(carried)
                    report(f"{name}: {carried}")
    return seen


async def _leave(client: Client, *, stream: bool) -> float:
    """Return the milliseconds from a client's disconnect until its engine has nothing to do."""
    asked = asyncio.create_task(client.stream(1000) if stream else client.ask(1000).__aenter__())
    await client.until(lambda found: found["engine"]["running"] == 1)
    asked.cancel()
    began = time.perf_counter()
    await asyncio.gather(asked, return_exceptions=True)
    return (await client.until(lambda found: found["engine"]["running"] == 0) - began) * 1000


async def _share(session: aiohttp.ClientSession) -> float:
    """Return the share of the tenant that has three times as many clients as the other.

    Both tenants want all the tokens there are.
    """
    async with deployed({**REPLICA, **SLOW, "replicas": "2"}) as url:
        client = Client(url, session)
        served: dict[str, int] = {}
        end = time.perf_counter() + BALANCED_AFTER + SECONDS

        async def one(tenant: str) -> None:
            while time.perf_counter() < end:
                async with client.ask(20, user=tenant) as response:
                    await response.read()
                    # Do not count the requests still queued when the other clients stop.
                    if end - SECONDS < time.perf_counter() < end:
                        served[tenant] = served.get(tenant, 0) + 20

        await asyncio.gather(*[one("web") for _ in range(SHARERS)], *[one("flood") for _ in range(3 * SHARERS)])
        return served["flood"] / sum(served.values())


async def _scale(session: aiohttp.ClientSession) -> tuple[float, float]:
    """Return the seconds until three replicas run under load, then one without load."""
    words = {"replicas": "1", "max_replicas": "3", "scale_up_delay": "1", "scale_down_delay": "2", "max_waiting": "8"}
    async with deployed({**REPLICA, **SLOW, **words}) as url:
        client = Client(url, session)
        began = time.perf_counter()
        load = asyncio.create_task(client.flood(4 * CLIENTS, 600))
        up = await client.until(lambda found: found["admission"]["limit"] == 3 * SLOTS) - began
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        began = time.perf_counter()
        return up, await client.until(lambda found: found["admission"]["limit"] == SLOTS) - began


async def _ways(proxy: str, session: aiohttp.ClientSession) -> AsyncIterator[tuple[str, Carried]]:
    """Measure each way to one engine, and to two."""
    for count, streams in (("1", STREAMS), ("2", MANY_STREAMS)):
        async with alone({**SIMULATED, **PACED, "workers": count}) as server:
            yield f"{count} without Ray", await _carry(Client(server, session), streams)
        async with deployed({**REPLICA, **PACED, "replicas": count}) as url:
            yield f"{count} by the ingress", await _carry(Client(url, session), streams)
            yield f"{count} by Ray's proxy", await _carry(Client(proxy, session), streams)


async def _carry(client: Client, streams: int) -> Carried:
    times = [await client.stream(50) for _ in range(20)]
    gaps = [gap for each in times for gap in np.diff(each[1:])]
    loaded: list[list[float]] = []
    end = time.perf_counter() + SECONDS

    async def again() -> None:
        while time.perf_counter() < end:
            loaded.append(await client.stream(100))

    began = time.perf_counter()
    await asyncio.gather(*[again() for _ in range(streams)])
    seconds = time.perf_counter() - began
    return Carried(
        ttft=_first(times),
        gap=float(np.mean(gaps)) * 1000,
        streams=streams,
        loaded_ttft=_first(loaded),
        rate=sum(len(each) - 1 for each in loaded) / seconds,
    )


def _first(times: list[list[float]]) -> float:
    """Return the median in milliseconds."""
    return float(np.median([each[1] - each[0] for each in times])) * 1000


def conclude(seen: Seen) -> str:
    by = {replicas: [rate for count, rate in seen.capacity if count == replicas] for replicas in (1, 2)}
    ratios = [two / one for one, two in zip(by[1], by[2], strict=True)]
    lines = [f"two replicas have {ratios[0]:.2f} and {ratios[1]:.2f} times the throughput of one ({by[1][0]:.0f} tokens/s)"]
    for kind, left in seen.left.items():
        lines.append(f"an engine is free {np.median(left):.0f} ms after its client leaves a {kind} answer, at most {max(left):.0f} ms")
    lines.append(f"of two tenants, the one with three times as many clients gets {seen.share:.1%} of the tokens")
    lines.append(f"one replica grows to three after {seen.up:.1f} s of load and shrinks back after {seen.down:.1f} s without load")
    for name, ways in seen.ways.items():
        for one in ways:
            loaded = f"at {one.streams} streams {one.loaded_ttft:.0f} ms, {one.rate:,.0f} tokens/s"
            lines.append(f"{name}: first token after {one.ttft:.1f} ms, then one every {one.gap:.2f} ms; {loaded}")
    return "\n".join(lines)
