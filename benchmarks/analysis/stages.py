"""Divides a request's time into consecutive stages, from the intended send to the last token. Pure.

All readings are of one clock: Linux's CLOCK_MONOTONIC is the same in every process of a host. The
stages therefore sum to the end-to-end time. If two readings are in the wrong order, a stage is
negative; the sum of the negative stages is the residual.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from benchmarks.recording.results import RequestRecord

# Each stage by the reading that ends it. A remote server provides only the first and the last
# reading.
STAGES = {
    "generator late": "dispatched",
    "frontend and admission": "submitted",
    "to the engine": "engine_queued",
    "engine's queue": "engine_scheduled",
    "prefill": "engine_first_token",
    "decode": "engine_last_token",
    "delivery": "last_token",
}
BLIND_STAGES = {"generator late": "dispatched", "until first token": "first_token", "streaming": "last_token"}


class Waterfall(msgspec.Struct):
    """Mean seconds of each stage over the answered requests.

    Attributes:
        residual: Sum of the negative stages, as a share of the end-to-end time.
        seen: Share of the answered requests for which the engine reported its stages.
    """

    stages: dict[str, float]
    end_to_end: float
    residual: float
    seen: float


def stages(record: RequestRecord) -> dict[str, float]:
    """Return the seconds of each stage of an answered request; they sum to its end-to-end time."""
    found, before = {}, record.intended
    for name, end in (STAGES if record.engine_first_token is not None else BLIND_STAGES).items():
        reading = getattr(record, end)
        # A stage without a reading becomes part of the next stage.
        if reading is not None:
            found[name] = reading - before
            before = reading
    return found


def waterfall(records: Sequence[RequestRecord]) -> Waterfall | None:
    """Return the stages of one point; None if no request was answered."""
    answered = [record for record in records if record.outcome == "ok" and record.last_token is not None]
    seen = [record for record in answered if record.engine_first_token is not None]
    chosen = seen or answered
    if not chosen:
        return None
    each = [stages(record) for record in chosen]
    names = [name for name in (STAGES if seen else BLIND_STAGES) if any(name in one for one in each)]
    means = {name: float(np.mean([one.get(name, 0.0) for one in each])) for name in names}
    total = float(np.mean([(record.last_token or 0.0) - record.intended for record in chosen]))
    wrong = float(np.mean([-sum(min(0.0, value) for value in one.values()) for one in each]))
    return Waterfall(means, total, wrong / total if total > 0 else 0.0, len(seen) / len(answered))
