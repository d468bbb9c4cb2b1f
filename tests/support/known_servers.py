"""Servers whose saturation is known, in virtual time: a step is computed, and nothing sleeps.

Each step gives every running request one token. A load on such a server yields the point, the
requests and the samples that a measurement of it would have recorded.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

import attrs

from benchmarks.analysis.report import Analysis, analyse
from benchmarks.recording.results import Point, Promise, Recording, RequestRecord, Run, Sample
from benchmarks.workload import arrivals

PROMPT, OUTPUT = 64, 20
SAMPLE_SECONDS = 0.05
REFUSAL_SECONDS = 0.002


@attrs.frozen(kw_only=True)
class Server:
    """A server by its step time in seconds, a function of the batch.

    Attributes:
        prefill: Seconds that one prompt adds to its first step.
        max_batch: Maximum number of running requests.
        kv_tokens: Size of the KV cache; a request reserves its prompt and its whole answer.
        max_open: Maximum number of open requests; the server refuses further ones.
        refuse_every: Every n-th request is refused.
        outage: Every request fails from this time on.
        host: Seconds of the host's process for each token; a step takes at least as long.
        reports: Names of the samples' fields; none is a server without metrics.
        noise: Relative standard deviation of a step's time.
    """

    step: Callable[[int], float] = lambda batch: 0.01
    prefill: float = 0.0
    max_batch: int = 10_000
    kv_tokens: int = 10**9
    max_open: int = 10**9
    refuse_every: int = 10**9
    outage: float = math.inf
    host: float = 0.0
    reports: tuple[str, ...] = ("running", "waiting", "kv_usage", "preemptions", "host_cpu")
    noise: float = 0.03

    @property
    def batch_limit(self) -> int:
        return min(self.max_batch, self.kv_tokens // (PROMPT + OUTPUT), self.max_open)

    def tokens_per_second(self, batch: int) -> float:
        """Return the throughput of a batch that is always as large."""
        seconds = max(self.step(batch), self.host * batch) + self.prefill * batch / OUTPUT
        return batch / seconds

    @property
    def capacity(self) -> float:
        """The largest rate in requests per second, of any batch up to 10,000."""
        return max(self.tokens_per_second(batch) for batch in range(1, min(self.batch_limit, 10_000) + 1)) / OUTPUT


@attrs.define
class _Run:
    """One load on one server.

    Attributes:
        clients: Whether a client sends the next request of the backlog when its last one has ended.
        backlog: (number, tokens) of the requests that are not yet due.
        due: (time, number, tokens), sorted.
    """

    server: Server
    rng: random.Random
    clients: bool
    now: float = 0.0
    cpu: float = 0.0
    sent: int = 0
    backlog: deque[tuple[int, int]] = attrs.field(factory=deque)
    due: list[tuple[float, int, int]] = attrs.field(factory=list)
    waiting: deque[RequestRecord] = attrs.field(factory=deque)
    running: list[RequestRecord] = attrs.field(factory=list)
    records: list[RequestRecord] = attrs.field(factory=list)
    samples: list[Sample] = attrs.field(factory=list)

    def play(self) -> None:
        while self.due or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now = max(self.now, self.due[0][0])
            self._arrive()
            prompts = self._admit()
            self._observe()
            if self.running:
                self._step(prompts)

    def _arrive(self) -> None:
        while self.due and self.due[0][0] <= self.now:
            at, number, tokens = heapq.heappop(self.due)
            record = RequestRecord(
                point=0,
                number=number,
                prompt_tokens=PROMPT,
                wanted_tokens=tokens,
                intended=at,
                dispatched=at,
            )
            self.records.append(record)
            self.sent += 1
            if at >= self.server.outage:
                self._turn_away(record, "connection")
            elif self.sent % self.server.refuse_every == 0 or len(self.waiting) + len(self.running) >= self.server.max_open:
                self._turn_away(record, "refused_503")
            else:
                self.waiting.append(record)

    def _turn_away(self, record: RequestRecord, outcome: str) -> None:
        record.outcome, record.finished = outcome, record.intended + REFUSAL_SECONDS  # type: ignore[assignment]
        self._next(record.finished)

    def _next(self, at: float) -> None:
        if self.clients and self.backlog:
            heapq.heappush(self.due, (at, *self.backlog.popleft()))

    def _admit(self) -> int:
        admitted = 0
        while self.waiting and len(self.running) < self.server.batch_limit:
            self.running.append(self.waiting.popleft())
            admitted += 1
        return admitted

    def _step(self, prompts: int) -> None:
        server, batch = self.server, len(self.running)
        work = max(server.step(batch), server.host * batch) + server.prefill * prompts
        self.now += work * math.exp(self.rng.gauss(0.0, server.noise))
        self.cpu += server.host * batch
        for record in self.running:
            record.deliveries.append((self.now, 1))
        for record in [one for one in self.running if len(one.deliveries) == one.wanted_tokens]:
            record.outcome, record.finished, record.completion_tokens = "ok", self.now, record.wanted_tokens
            self._next(self.now)
        self.running = [one for one in self.running if one.finished is None]

    def _observe(self) -> None:
        if self.samples and self.now < self.samples[-1].time + SAMPLE_SECONDS:
            return
        fields = {
            "running": len(self.running),
            "waiting": len(self.waiting),
            "kv_usage": min(1.0, len(self.running) * (PROMPT + OUTPUT) / self.server.kv_tokens),
            "preemptions": 0,
            "host_cpu": self.cpu,
        }
        self.samples.append(Sample(point=0, time=self.now))
        for name in self.server.reports:
            setattr(self.samples[-1], name, fields[name])


def closed(server: Server, concurrency: int, seed: int = 0, per_client: int = 8) -> tuple[Point, list[RequestRecord], list[Sample]]:
    """Return a closed loop, whose clients are out of step."""
    run = _Run(server, random.Random(f"{seed} {concurrency}"), clients=True)
    requests = max(40, concurrency * per_client)
    leads = [math.ceil(OUTPUT * (client + 1) / concurrency) for client in range(concurrency)]
    everything = [
        *((number, tokens) for number, tokens in enumerate(leads)),
        *((number, OUTPUT) for number in range(concurrency, concurrency + requests)),
    ]
    run.backlog.extend(everything[concurrency:])
    for number, tokens in everything[:concurrency]:
        heapq.heappush(run.due, (0.0, number, tokens))
    run.play()
    for record in run.records:
        record.lead = record.number < concurrency
    point = Point(number=0, target="t", concurrency=concurrency, planned=requests)
    return _finish(point, run)


def opened(
    server: Server, rate: float, seed: int = 0, seconds: float = 30.0, shape: float = 1.0
) -> tuple[Point, list[RequestRecord], list[Sample]]:
    """Return an open loop with gamma arrivals; an infinite shape is a constant rate."""
    run = _Run(server, random.Random(f"{seed} {rate}"), clients=False)
    endless = arrivals.constant(rate) if shape == math.inf else arrivals.gamma(rate, shape, seed)
    times = list(itertools.takewhile(lambda time: time < seconds, endless))
    for number, time in enumerate(times):
        heapq.heappush(run.due, (time, number, OUTPUT))
    run.play()
    point = Point(number=0, target="t", rate=rate, pattern="constant" if shape == math.inf else "poisson", planned=len(times))
    return _finish(point, run)


def _finish(point: Point, run: _Run) -> tuple[Point, list[RequestRecord], list[Sample]]:
    point.prompt, point.output, point.complete = str(PROMPT), str(OUTPUT), True
    point.seconds = max(record.finished or 0.0 for record in run.records)
    return point, run.records, run.samples


def analysed(
    loads: list[tuple[Point, list[RequestRecord], list[Sample]]], engine: dict[str, object] | None = None, **promise: float
) -> Analysis:
    """Return the analysis of a run of these loads."""
    run = Run(command="", started="", provenance={"engine": engine}, workload={}, promise=Promise(**promise))
    recording = Recording(run)
    for number, (point, records, samples) in enumerate(loads):
        for each in (point, *records, *samples):
            setattr(each, "number" if each is point else "point", number)
        run.points.append(point)
        recording.records += records
        recording.samples += samples
    return analyse(recording)
