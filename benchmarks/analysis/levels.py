"""One load of a sweep, as the verdicts see it. Pure."""

import attrs

from benchmarks.analysis.evidence import Evidence
from benchmarks.analysis.steady_state import Floats
from benchmarks.analysis.summary import Distribution, Summary


@attrs.frozen(kw_only=True)
class Level:
    """One concurrency of a sweep, with its repeats combined."""

    concurrency: int
    summary: Summary
    blocks: Floats
    evidence: Evidence
    valid: bool


def tail(summary: Summary, figure: str) -> float | None:
    """Return the p95 of `ttft` or `tpot` in seconds, or the p50 where the sample is too small."""
    distribution: Distribution = getattr(summary, figure)
    return distribution.at("p95") or distribution.at("p50")
