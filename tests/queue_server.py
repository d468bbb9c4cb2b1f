"""A server of exactly known capacity, computed without a clock: a queue before equal servers.

Each request waits for a free server, in the order of arrival, and gets its tokens at equal
intervals. So `servers / service` requests per second are its capacity.
"""

import heapq
import io
import random
from typing import Any

import attrs

from benchmarks.recording import storage
from benchmarks.recording.results import Recording, RequestRecord, Run
from benchmarks.sweep import session
from benchmarks.sweep.display import Display
from benchmarks.workload.requests import Fixed, Workload


@attrs.define(kw_only=True)
class Queue:
    """A `SystemUnderTest`.

    Attributes:
        first: Seconds from a request's start to its first token.
        token: Seconds between two tokens, given the number of requests in service.
        spread: Largest relative change of the speed between two jobs.
    """

    name: str = "queue"
    servers: int = 8
    first: float = 0.1
    token: Any = 0.01
    spread: float = 0.0
    processes: int = 0
    vocabulary: tuple[int, int] = (1, 200)
    jobs: int = 0

    @property
    def capacity(self):
        """Requests per second of four tokens."""
        return self.servers / (self.first + 3 * self.token)

    async def read(self):
        return {}

    async def run(self, job, measured, show):
        times, items = job.schedule()
        self.jobs += 1
        slower = 1.0 + random.Random(self.jobs).uniform(0.0, self.spread)
        free = [0.0] * self.servers
        clients = [0.0] * (job.load.concurrency or 0)
        for number, item in enumerate(items):
            due = heapq.heappop(clients) if clients else times[number]
            begin = max(due, heapq.heappop(free))
            token = self.token(job.load.concurrency) if callable(self.token) else self.token
            deliveries = [(begin + slower * (self.first + token * index), 1) for index in range(item.max_tokens)]
            end = deliveries[-1][0]
            heapq.heappush(free, end)
            if job.load.concurrency:
                heapq.heappush(clients, end)
            measured.records.append(
                RequestRecord(
                    point=job.point,
                    number=number,
                    prompt_tokens=len(item.prompt),
                    wanted_tokens=item.max_tokens,
                    completion_tokens=item.max_tokens,
                    lead=item.lead,
                    intended=due,
                    dispatched=due,
                    deliveries=deliveries,
                    finished=end,
                    outcome="ok",
                )
            )
        measured.complete = True


async def measure(systems, planner, folder, **settings):
    """Measure what a planner chooses, and return the recording as a reader of its files gets it."""
    out = folder / "run.json"
    workload = Workload(prompt=Fixed(8), output=Fixed(4), vocabulary=(1, 200))
    chosen = session.Settings(targets=[], workload=workload, out=out, prompts=[Fixed(8)], warm_up=1, **settings)
    run = Run(command="", started="", provenance={}, workload={}, promise=chosen.promise, search=chosen.goal)
    await session.measure_all(systems, chosen, planner, Recording(run), Display(io.StringIO()))
    return storage.read(out)
