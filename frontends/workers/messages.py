"""The messages between the supervisor and its workers.

Both ends are processes of one program on one machine, so Python objects are pickled.
"""

from typing import Literal

import msgspec

from frontends.http.idempotency_store import CachedResponse, Name
from frontends.responses import stored

# From a worker


class Offer(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A request for a slot: a number that the worker chooses, and the fields of `Ticket`.

    Times are of the machine's monotonic clock.
    """

    number: int
    request_id: str
    tenant: str
    priority: int
    prompt_tokens: int
    max_tokens: int | None
    arrived: float | None
    deadline: float | None
    best_effort: bool
    prefix: tuple[int, ...] = ()


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A request no longer needs its slot or its place in the queue; how it ended."""

    number: int
    generated: int
    complete: bool


class Move(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """A running request needs another engine, because this worker has lost its own."""

    number: int


class FirstToken(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A request has its first token."""

    number: int


class StepCount(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """An engine's metrics as this worker sees them, with their time: fields of `EngineSample`."""

    told: float
    engine: int
    steps: float
    busy_seconds: float
    running: int
    waiting: int
    kv_usage: float
    kv_tokens: int | None
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int


class Load(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The number of open connections, and of all connections taken so far."""

    open: int
    taken: int


class Want(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The worker requests a place at an engine's life after `life`, the last one that it knows.

    An engine has a number, and a new life with each start.
    """

    engine: int
    life: int


class Up(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The worker can take requests with this life of an engine. `described` is for the log."""

    engine: int
    life: int
    described: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The engine did not start or died. With `wrong_argument` the program exits with code 2."""

    reason: str
    wrong_argument: bool


class WorkerMetrics(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The worker's metrics, pickled."""

    number: int
    metrics: bytes


class MetricsRequest(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The worker requests metrics.

    They are those of this server's workers (`own`), those of all servers of a cluster, or what others
    have registered in all of them (`series`).
    """

    number: int
    scope: Literal["own", "all", "series"]


class Claim(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The worker requests the response or the claim for an `Idempotency-Key`."""

    number: int
    name: Name
    body: bytes


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The request with the claim of this number has ended, with a complete answer or None."""

    number: int
    kind: str
    answer: bytes | None


class StoreRequest(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """The worker requests an operation on the store of responses."""

    number: int
    operation: stored.Operation


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """The answer to `Check`: the worker's event loop runs."""


class Parting(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """The worker has drained.

    It takes the connections that are on their way, and should get no more.
    """


# From the supervisor


class Start(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """A place at an engine.

    Attributes:
        engine: the number of the engine.
        life: the number of its start, from 1.
        client: the pickled `CoreClient`; None where each worker has its own engine.
        launched: whether the engine has started, or is still starting.
    """

    engine: int
    life: int
    client: bytes | None
    launched: bool


class Limits(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """The limit and the maximum queue length of the supervisor's admission."""

    limit: int | None
    max_waiting: int | None


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """A request may run, in this engine."""

    number: int
    engine: int


class Declined(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """A request was refused, immediately or after it has waited."""

    number: int
    reason: str
    retry_after: float


class WorkerMetricsRequest(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """The supervisor requests the worker's metrics."""

    number: int


class MetricsReply(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The metrics of all workers, or the registered ones, pickled."""

    number: int
    metrics: bytes


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Abort the requests that a dead worker has left in an engine."""

    engine: int
    request_ids: list[str]


class Died(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """An engine died.

    Attributes:
        engine: its number; None if the server can serve no longer.
        for_good: whether the engine will not be restarted.
        stalled: whether the engine made no step and was killed.
        requested: whether it is being restarted on request.
    """

    engine: int | None
    reason: str
    for_good: bool
    stalled: bool = False
    requested: bool = False


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Drain after `--drain-delay`, and end; with `now`, cancel open requests immediately."""

    now: bool


class Claimed(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The answer to `Claim`.

    Attributes:
        kept: the stored response; None if the worker has got the claim or is refused.
        refused: the fields of an `HTTPFailure` if the worker is refused.
    """

    number: int
    kept: CachedResponse | None
    refused: tuple[int, str, str, dict[str, str]] | None


class StoreReply(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """The answer to `StoreRequest`."""

    number: int
    response: stored.StoredResponse | None


class StopResponse(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """A response that runs in the worker has been cancelled, deleted or dropped."""

    name: stored.Name


class Reread(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Reread the operator's files now."""


class Reconfigure(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """Apply these settings of the server, pickled; the options that need a restart are unchanged."""

    settings: bytes


class Check(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Answer with `Alive`."""


FromWorker = (
    Offer
    | Leave
    | Move
    | FirstToken
    | StepCount
    | Load
    | Want
    | Up
    | Failed
    | WorkerMetrics
    | MetricsRequest
    | Claim
    | Answered
    | StoreRequest
    | Alive
    | Parting
)
FromSupervisor = (
    Start
    | Limits
    | Granted
    | Declined
    | WorkerMetricsRequest
    | MetricsReply
    | Abort
    | Died
    | Stop
    | Claimed
    | StoreReply
    | StopResponse
    | Reread
    | Reconfigure
    | Check
)
