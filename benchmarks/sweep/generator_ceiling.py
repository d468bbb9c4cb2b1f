"""Measures the load generator's ceiling: `python -m benchmarks self-test`.

The engine and the server do no work. Each target gets two figures. Tokens per core-second are
tokens divided by the generator's CPU time, so the figure holds even where server and generator
share a core. Requests per core-second are measured with answers of one token.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from benchmarks.generator.processes import open_fleet
from benchmarks.generator.run import Measured
from benchmarks.recording.machine import Machine
from benchmarks.recording.monitor import manager_source
from benchmarks.stand_ins.null_engine import VOCABULARY, NoEngine, no_server
from benchmarks.sweep.systems import HERE, INPROCESS, FleetSystem, InProcessSystem, SystemUnderTest, middle
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig

CLIENTS = 64
TOKENS = 128


class Ceiling(msgspec.Struct, kw_only=True):
    """What one core of the generator can do; in process, the figures include the manager's work.

    Attributes:
        target: The target's name.
        tokens_per_core_second: Tokens divided by the generator's CPU time.
        requests_per_core_second: Requests for one token, divided by the generator's CPU time.
        seconds: Minimum CPU time of each measurement.
    """

    target: str
    tokens_per_core_second: float
    requests_per_core_second: float
    seconds: float


@asynccontextmanager
async def inprocess_rig() -> AsyncIterator[SystemUnderTest]:
    """A manager whose engine does no work."""
    async with EngineManager(NoEngine(), ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        yield InProcessSystem(manager, middle(VOCABULARY), manager_source(manager, Machine()))


@asynccontextmanager
async def http_rig() -> AsyncIterator[SystemUnderTest]:
    """The fleet's client and a server that does no work."""

    async def nothing() -> dict[str, object]:
        return {}

    async with no_server() as url, open_fleet(url, "nothing", 1) as fleet:
        yield FleetSystem(HERE, fleet, middle(VOCABULARY), nothing)


async def inprocess_tokens(seconds: float) -> float:
    """Return tokens per core-second in process."""
    async with inprocess_rig() as system:
        return await _per_core_second(system, seconds, TOKENS, _tokens)


async def measure(seconds: float, report: Callable[[str], None]) -> list[Ceiling]:
    found = []
    for name, opened in ((INPROCESS, inprocess_rig()), (HERE, http_rig())):
        async with opened as system:
            tokens = await _per_core_second(system, seconds, TOKENS, _tokens)
            requests = await _per_core_second(system, seconds, 1, lambda measured: len(measured.records))
        found.append(Ceiling(target=name, tokens_per_core_second=tokens, requests_per_core_second=requests, seconds=seconds))
        report(f"{name}: {tokens:,.0f} tokens/s and {requests:,.0f} requests/s per core of the generator")
    return found


def _tokens(measured: Measured) -> int:
    return sum(record.completion_tokens for record in measured.records)


async def _per_core_second(system: SystemUnderTest, seconds: float, tokens: int, count: Callable[[Measured], int]) -> float:
    """Run rounds of doubling length until a round uses `seconds` of CPU time."""
    requests = CLIENTS
    while True:
        workload = Workload(prompt=Fixed(16), output=Fixed(tokens), vocabulary=system.vocabulary)
        job = PointPlan(point=0, label="self-test", load=Load(concurrency=CLIENTS), workload=workload, requests=requests)
        measured = Measured()
        await system.run(job, measured, lambda _: None)
        if measured.cpu_seconds >= seconds:
            return count(measured) / measured.cpu_seconds
        requests *= 2
