"""Runs as files, made without an engine: what a page shows is known exactly."""

import msgspec

from benchmarks.recording import storage
from benchmarks.recording.results import Point, Promise, Recording, RequestRecord, Run, Sample

GAP = 0.02


def closed(number, concurrency, **more):
    return Point(number=number, target=more.pop("target", "inprocess"), concurrency=concurrency, prompt="16", output="3", **more)


def opened(number, rate, **more):
    return Point(number=number, target=more.pop("target", "http"), rate=rate, pattern="poisson", prompt="16", output="3", **more)


def requests(point, count=60, refused=0.0, ttft=0.01):
    """Return requests of three tokens; the clients of a closed loop send one after another.

    The last requests are refused, up to the share `refused`.
    """
    clients = point.concurrency or 1
    spacing = (ttft + 2 * GAP) if point.concurrency else 1 / (point.rate or 1.0)
    records = []
    for number in range(count):
        at = number // clients * spacing
        ok = number < count * (1 - refused)
        deliveries = [(at + ttft + GAP * token, 1) for token in range(3)] if ok else []
        done = at + ttft + 2 * GAP
        times = {"intended": at, "dispatched": at, "finished": done, "deliveries": deliveries, "outcome": "ok" if ok else "refused_429"}
        record = {"point": point.number, "number": number, "prompt_tokens": 16, "wanted_tokens": 3, "completion_tokens": len(deliveries)}
        records.append(msgspec.convert({**record, **times}, RequestRecord))
    return records


def samples(point, seconds=1.0, watts=None):
    running = point.concurrency or 1
    times = [seconds * part / 4 for part in range(5)]
    return [
        Sample(point=point.number, time=at, running=running, waiting=0, kv_usage=0.1, energy=None if watts is None else at * watts)
        for at in times
    ]


def write(path, points, *, invalid=(), refused=0.0, promise=None, model="a model", watts=None, price=None):
    """Write a run; each point is complete, and the points of these numbers lack an arrival.

    A point's TTFT grows with its load, from 10 ms. The GPUs draw `watts`.
    """
    promise = promise or Promise()
    records = []
    for point in points:
        sent = requests(point, refused=refused, ttft=0.01 * (1 + (point.concurrency or point.rate or 0) / 8))
        point.complete, point.planned = True, len(sent) + (point.number in invalid)
        records += sent
    run = Run(
        command="made", started="now", provenance={"engine": {"model": model, "max_num_seqs": 16}}, workload={}, points=list(points),
        promise=promise, price_per_hour=price,
    )  # fmt: skip
    storage.write(path, Recording(run, records, [sample for point in points for sample in samples(point, watts=watts)]))
    return path
