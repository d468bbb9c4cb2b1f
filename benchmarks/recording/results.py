"""The records of a run: raw times per request, and what produced them. Derives nothing.

`benchmarks.recording.storage` writes and reads them. `python -m benchmarks schema` prints their
JSON Schema, which docs/run.schema.json publishes.
"""

from typing import Any, Literal

import msgspec

SCHEMA = 2
# The detail of a request that was in flight when the run was stopped.
STOPPED = "the run was stopped"

# How the tokens of the deliveries were counted: by the server (or in process), by spreading the
# server's count of several deliveries over them by the length of their text, by a tokenizer, or as
# one per delivery.
Counted = Literal["server", "spread", "tokenizer", "chunks"]
Outcome = Literal["ok", "refused_429", "refused_503", "timeout", "cancelled", "connection", "error", "truncated", "wrong_token_count"]


class RequestRecord(msgspec.Struct, kw_only=True):
    """What happened to one request; times are monotonic seconds from the point's start, or None.

    `intended` is when the request was due, `dispatched` when it was sent; in a closed loop they are
    equal. `deliveries` are (time, tokens) for every piece that reached the client; one that
    completed no token has 0. Fields that begin with `engine_` are the engine core's readings of the same clock. `submitted` is when the
    manager passed the request to the engine.

    A `lead` is a client's first request, shortened to desynchronise the clients. It is load like
    any other request, but no sample. `adapter` is a LoRA adapter, or empty for the model itself. `think` are the
    seconds for which the client waited after the answer before.
    """

    point: int
    number: int
    prompt_tokens: int
    wanted_tokens: int
    intended: float
    request_id: str = ""
    tenant: str = "default"
    priority: int = 0
    adapter: str = ""
    turn: int = 0
    think: float = 0.0
    lead: bool = False
    dispatched: float | None = None
    accepted: float | None = None
    submitted: float | None = None
    engine_queued: float | None = None
    engine_scheduled: float | None = None
    engine_first_token: float | None = None
    engine_last_token: float | None = None
    deliveries: list[tuple[float, int]] = []
    finished: float | None = None
    completion_tokens: int = 0
    counted: Counted = "server"
    outcome: Outcome = "error"
    detail: str = ""
    retry_after: float | None = None

    @property
    def first_token(self) -> float | None:
        return self.deliveries[0][0] if self.deliveries else None

    @property
    def last_token(self) -> float | None:
        return self.deliveries[-1][0] if self.deliveries else None

    def gaps(self) -> list[tuple[float, float, int]]:
        """Return (begin, end, tokens) of each gap between deliveries; the tokens ended the gap.

        Deliveries of the same moment, which were read together, end one gap. A delivery that
        completed no token ends none.
        """
        found: list[tuple[float, float, int]] = []
        for end, tokens in self.deliveries[1:]:
            begin = found[-1][1] if found else self.deliveries[0][0]
            if tokens > 0 and end > begin:
                found.append((begin, end, tokens))
            elif tokens > 0 and found:
                found[-1] = (*found[-1][:2], found[-1][2] + tokens)
        return found


class Sample(msgspec.Struct, kw_only=True):
    """What the engine and the machine reported at one moment of a point; None where not reported.

    `waiting` is the engine's queue, `admission_waiting` the queue of admission. `kv_usage` is a
    share from 0 to 1. `prefix_queries` and `prefix_hits` count the prompt tokens that the engine looked
    up and found in its prefix cache. `rss` is the memory of the server's processes and `vram` that of
    its GPUs, in bytes; `gpu` is the GPUs' utilisation, 0 to 1, and `energy` the joules that they have
    used since the point's start. `host_cpu` is the CPU time in seconds since the
    point's start of the process that holds the engine's client. `engine_cpu` is that of the busiest
    engine process.
    """

    point: int
    time: float
    running: int | None = None
    waiting: int | None = None
    admission_waiting: int | None = None
    kv_usage: float | None = None
    preemptions: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    rss: int | None = None
    vram: int | None = None
    gpu: float | None = None
    energy: float | None = None
    host_cpu: float | None = None
    engine_cpu: float | None = None


class Worker(msgspec.Struct, kw_only=True):
    """A generator process of another host, during one point; CPU time and lag are as in `Point`.

    `requests` counts all that it sent. `clock_offset` is its monotonic clock minus that of the run's host,
    in seconds, and `clock_error` how far it may have been from that, drift within the point included.
    """

    name: str
    requests: int
    client_cpu_seconds: float
    loop_lag: float | None
    clock_offset: float
    clock_error: float


class Point(msgspec.Struct, kw_only=True):
    """One load: a closed loop with a `concurrency`, or an open loop with a `pattern` and a `rate`.

    `rate` is the mean in requests per second. `planned` is the number of requests to send.
    `client_cpu_seconds` and `loop_lag` (the p99 of the event loop's delay, in seconds) are those of
    the busiest of the generator's `processes`. With 0 processes, the generator ran in the process
    that holds the engine's client. `saturated_at` is when an open loop was stopped because the server
    was over-saturated, in seconds since the point's start. `problem` is why a generator process ended the
    point early. `workers` are the processes on other hosts, of which number N sent the requests whose
    number is N modulo the number of processes that have clients.
    """

    number: int
    target: str
    concurrency: int | None = None
    rate: float | None = None
    pattern: str = "closed"
    prompt: str = ""
    output: str = ""
    repeat: int = 0
    planned: int | None = None
    seconds: float = 0.0
    processes: int = 0
    client_cpu_seconds: float = 0.0
    loop_lag: float | None = None
    complete: bool = False
    saturated_at: float | None = None
    problem: str = ""
    workers: list[Worker] = []

    @property
    def load(self) -> str:
        if self.concurrency:
            return f"concurrency {self.concurrency}"
        return f"{self.pattern} {self.rate:g}/s" if self.rate else self.pattern

    @property
    def name(self) -> str:
        """Target, load and prompt; the same for all repeats."""
        return f"{self.target}, {self.load}, prompt {self.prompt}"


class Promise(msgspec.Struct, kw_only=True, frozen=True):
    """The SLO by which requests are judged, in seconds; None is no bound."""

    ttft: float | None = None
    tpot: float | None = None


class Goal(msgspec.Struct, kw_only=True, frozen=True):
    """What a search looks for: the highest load at which enough requests meet the SLO.

    `attainment` is the least share of the requests that must meet the SLO, or be answered where
    there is none. The search ends at an interval whose ends differ by less than `width`, relative
    to the lower one.
    """

    loop: Literal["rate", "concurrency"]
    attainment: float
    width: float


class Memory(msgspec.Struct, kw_only=True):
    """Bytes of the server's processes and GPUs at three moments, and what the model's files imply.

    `kv_budget` is the size that the engine reserved for its KV cache: its tokens times the bytes of
    one.
    """

    device: str
    before: int | None = None
    loaded: int | None = None
    peak: int | None = None
    weights: int | None = None
    activations: int | None = None
    kv_bytes_per_token: int | None = None
    kv_budget: int | None = None
    max_model_len: int | None = None


class Run(msgspec.Struct, kw_only=True):
    """One run: its points, and all that is needed to judge or repeat it.

    `price_per_hour` is the price of the server, in any currency. `ceiling` is the generator's, in
    tokens per second by target, as `self-test` measures it. It is empty where it was not measured.
    """

    schema: int = SCHEMA
    command: str
    started: str
    provenance: dict[str, Any]
    workload: dict[str, Any]
    promise: Promise = Promise()
    price_per_hour: float | None = None
    search: Goal | None = None
    ceiling: dict[str, float] = {}
    memory: Memory | None = None
    points: list[Point] = []


class Recording(msgspec.Struct):
    """A run with its requests and samples, as a reader of its files gets it.

    Where `records` is a sample of the requests, `summary` holds the figures of all of them, encoded
    by `benchmarks.analysis.figures`. Otherwise it is empty.
    """

    run: Run
    records: list[RequestRecord] = []
    samples: list[Sample] = []
    summary: bytes = b""

    def of(self, point: Point) -> tuple[list[RequestRecord], list[Sample]]:
        records = [record for record in self.records if record.point == point.number]
        return records, [sample for sample in self.samples if sample.point == point.number]
