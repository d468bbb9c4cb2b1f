"""Targets and loads for tests of the load generator."""

import anyio

from benchmarks.generator.run import Generator
from benchmarks.recording.results import RequestRecord
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload

WORKLOAD = Workload(prompt=Fixed(8), output=Fixed(4), vocabulary=(1, 200))


class Scripted:
    """Delivers `tokens` at a time after each of `gaps`; a gap may be a function of the time.

    No token moves in the time span `stalled`.
    """

    def __init__(self, gaps=(0.25, 0.4, 0.1, 0.4, 0.1), tokens=1, stalled=(0.0, 0.0)):
        self.gaps = gaps
        self.tokens = tokens
        self.stalled = stalled

    async def send(self, item, record, now, origin):
        record.accepted = now()
        for gap in self.gaps:
            await anyio.sleep(gap(now()) if callable(gap) else gap)
            if self.stalled[0] <= now() < self.stalled[1]:
                await anyio.sleep(self.stalled[1] - now())
            record.deliveries.append((now(), self.tokens))
            record.completion_tokens += self.tokens
        record.outcome = "ok"
        return ()


def generate(target, load, workload=WORKLOAD, **job):
    return Generator(target, PointPlan(point=0, label="test", load=load, workload=workload, **{"requests": 0, **job}))


async def closed(target=None, concurrency=1, requests=10, gap=None):
    """Return the result of a closed loop; `gap` gives single-delivery answers a time after it."""
    target = target or Scripted(*([(gap,)] if gap else []))
    generator = generate(target, Load(concurrency=concurrency), requests=requests)
    await generator.run()
    return generator.measured


def sent(number, start, end, outcome="ok"):
    return RequestRecord(
        point=0,
        number=number,
        prompt_tokens=1,
        wanted_tokens=1,
        completion_tokens=1,
        intended=start,
        dispatched=start,
        deliveries=[(end, 1)],
        finished=end,
        outcome=outcome,
    )
