"""The figures that are compared, and the truth: the same figures from the server's own log.

This module shares no code with `benchmarks.analysis`, so that a mistake there is seen here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.truth.server import Entry

# The largest difference of a median that counts as right, in seconds.
TOLERANCE = 0.003
TIMES = ("ttft", "itl", "tpot", "e2e")


class Figures(msgspec.Struct, kw_only=True):
    """What was measured, or what is true, of one run.

    Attributes:
        outcomes: Requests by outcome. A tool that does not tell failures apart calls them `failed`.
        tokens: Tokens of the complete answers.
        times: Medians in seconds of those of `TIMES` that the tool reports; None for one that it
            reports for no request.
    """

    outcomes: dict[str, int]
    tokens: int
    times: dict[str, float | None]


def truth(log: Sequence[Entry]) -> Figures:
    """Return the true figures of the measured requests.

    TTFT counts to the first token, E2E to the last; TPOT is the time after the first tokens for
    each token after them; ITL is the time for each token of a write since the write before. All
    cover complete answers.
    """
    complete = [entry for entry in log if entry.outcome == "ok"]
    answers = [entry for entry in complete if entry.pieces]
    gaps: list[float] = []
    tpots: list[float] = []
    for entry in answers:
        (first, _), *rest = entry.pieces
        before = first
        for time, tokens in rest:
            gaps += [(time - before) / tokens] * tokens
            before = time
        if rest:
            tpots.append((before - first) / sum(tokens for _, tokens in rest))
    times = {
        "ttft": median([entry.pieces[0][0] - entry.arrived for entry in answers]),
        "itl": median(gaps),
        "tpot": median(tpots),
        "e2e": median([entry.pieces[-1][0] - entry.arrived for entry in answers]),
    }
    tokens = sum(count for entry in complete for _, count in entry.pieces)
    return Figures(outcomes=dict(Counter(entry.outcome for entry in log)), tokens=tokens, times=times)


def median(values: Sequence[float]) -> float | None:
    """Return the lower median; None of no values."""
    return sorted(values)[(len(values) - 1) // 2] if values else None


def wrong_counts(true: Figures, measured: Figures) -> list[str]:
    """Return a clause with both values for the outcomes and the tokens that are wrong."""
    found = [f"{_counts(measured.outcomes)} instead of {_counts(true.outcomes)}"] if not _same(true.outcomes, measured.outcomes) else []
    return found + ([f"{measured.tokens} tokens instead of {true.tokens}"] if measured.tokens != true.tokens else [])


def wrong_times(true: Figures, measured: Figures, tolerance: float = TOLERANCE, slack: float = 0.0) -> list[str]:
    """Return a clause with both values for each median that is wrong by more than `tolerance` seconds.

    TTFT and E2E may be wrong by `slack` more: they contain the delays of a machine with other work,
    which the differences ITL and TPOT do not.
    """
    found = []
    for name, value in measured.times.items():
        wanted = true.times[name]
        if wanted is not None and (value is None or abs(value - wanted) > tolerance + slack * (name in ("ttft", "e2e"))):
            found.append(f"{name.upper()} {_ms(value)} instead of {_ms(wanted)} ms")
    return found


def _same(true: Mapping[str, int], measured: Mapping[str, int]) -> bool:
    if "failed" not in measured:
        return dict(true) == dict(measured)
    failed = sum(true.values()) - true.get("ok", 0)
    return (true.get("ok", 0), failed) == (measured.get("ok", 0), measured["failed"])


def _counts(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcomes.items() if count) or "no request"


def _ms(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds * 1000:.1f}"
