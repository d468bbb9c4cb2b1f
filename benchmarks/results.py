"""The facts of a run, as they are kept: raw times per request, and what produced them. Derives nothing.

A run is one JSON file; its requests stand beside it, one JSON object a line (`run.json`, `run.requests.jsonl`).
"""

from pathlib import Path
from typing import Any, Literal

import msgspec

SCHEMA = 1

Outcome = Literal["ok", "refused_429", "refused_503", "timeout", "cancelled", "connection", "error", "truncated", "wrong_token_count"]


class RequestRecord(msgspec.Struct, kw_only=True):
    """What happened to one request. Times are monotonic seconds from the point's start, None for what never happened.

    `intended` is when it was due, `dispatched` when it was really sent; in a closed loop they are the same moment.
    `deliveries` are (time, tokens) for every piece that reached the client.
    """

    point: int
    number: int
    prompt_tokens: int
    wanted_tokens: int
    intended: float
    dispatched: float | None = None
    accepted: float | None = None
    engine_queued: float | None = None
    engine_scheduled: float | None = None
    engine_first_token: float | None = None
    engine_last_token: float | None = None
    deliveries: list[tuple[float, int]] = []
    finished: float | None = None
    completion_tokens: int = 0
    outcome: Outcome = "error"
    detail: str = ""
    retry_after: float | None = None

    @property
    def first_token(self) -> float | None:
        return self.deliveries[0][0] if self.deliveries else None

    @property
    def last_token(self) -> float | None:
        return self.deliveries[-1][0] if self.deliveries else None


class Point(msgspec.Struct, kw_only=True):
    """One load that was held: a closed loop at a `concurrency`, or an open one at a `rate` a second."""

    number: int
    target: str
    concurrency: int | None = None
    rate: float | None = None
    seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    complete: bool = False

    @property
    def load(self) -> str:
        """The load in words, for a person."""
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:g}/s"


class Run(msgspec.Struct, kw_only=True):
    """One run: several points on one target, and all that is needed to judge or repeat it."""

    schema: int = SCHEMA
    command: str
    started: str
    provenance: dict[str, Any]
    workload: dict[str, Any]
    points: list[Point] = []


class UnreadableRun(Exception):
    """A file that is no run of this schema; the message names it."""


def requests_path(path: Path) -> Path:
    return path.with_name(path.stem + ".requests.jsonl")


def write(path: Path, run: Run, records: list[RequestRecord]) -> None:
    """Both files; a run that was cut short is written like any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
    encoder = msgspec.json.Encoder()
    requests_path(path).write_bytes(b"".join(encoder.encode(record) + b"\n" for record in records))


def read(path: Path) -> tuple[Run, list[RequestRecord]]:
    """Raises UnreadableRun, naming the file, for another schema, a file that is none, or one that is not there."""
    try:
        raw = msgspec.json.decode(path.read_bytes())
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise UnreadableRun(f"{path}: schema {schema}, but this version reads schema {SCHEMA}")
        run = msgspec.convert(raw, Run)
        decoder = msgspec.json.Decoder(RequestRecord)
        return run, [decoder.decode(line) for line in requests_path(path).read_bytes().splitlines()]
    except OSError as error:
        raise UnreadableRun(f"{error.filename}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableRun(f"{path}: {error}") from error
