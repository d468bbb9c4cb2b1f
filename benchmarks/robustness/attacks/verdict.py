"""What a row cost the canary and the server, and which of its bounds it broke. Pure."""

import math

import msgspec
import numpy as np

from benchmarks.robustness.attacks.rows import MIB, Row
from benchmarks.robustness.canary import Canary, Timed


class Figures(msgspec.Struct, kw_only=True):
    """The canary's latencies in one phase, in seconds.

    Attributes:
        lag: Longest probe of a route that does no work: the time that the event loop was busy
            otherwise, or the machine with other processes.
    """

    p50: float
    worst: float
    failures: int
    lag: float

    def __str__(self) -> str:
        failures = f", {self.failures} failed" if self.failures else ""
        return f"p50 {self.p50 * 1e3:.0f} ms, worst {self.worst * 1e3:.0f} ms{failures}, loop {self.lag * 1e3:.0f} ms late"


class Played(msgspec.Struct, kw_only=True):
    """The results of one row.

    Attributes:
        resident_before: Bytes of all the server's processes; None for a server on another machine.
        longest: Seconds until the slowest answer to an attacker.
        broken: Descriptions of the bounds that the row broke.
    """

    number: str
    name: str
    skipped: str | None = None
    attackers: int = 0
    before: Figures | None = None
    control: Figures | None = None
    beside: Figures | None = None
    after: Figures | None = None
    resident_before: int | None = None
    resident_most: int | None = None
    resident_after: int | None = None
    answers: dict[str, int] = {}
    longest: float = 0.0
    broken: list[str] = []

    def __str__(self) -> str:
        start = f"{self.number} {self.name}"
        if self.skipped:
            return f"{start}: skipped, {self.skipped}"
        control = f"; with the control: {self.control}" if self.control else ""
        sizes = [self.resident_before, self.resident_most, self.resident_after]
        before, most, after = ("?" if size is None else f"{size / MIB:.0f}" for size in sizes)
        answers = ", ".join(f"{count} x {answer}" for answer, count in sorted(self.answers.items())) or "nothing"
        return (
            f"{start}: canary before: {self.before}{control}; with {self.attackers} attackers: {self.beside}; after: {self.after}; "
            f"resident {before} MiB before, {most} at most, {after} after; attackers got {answers}, the last after {self.longest:.1f} s; "
            + (f"BROKEN: {'; '.join(self.broken)}" if self.broken else "holds")
        )


def figures(canary: Canary, since: float, until: float, *, within: bool = False) -> Figures:
    """Summarize the requests open during a phase, or those entirely `within` it."""

    def of(timed: list[Timed]) -> list[float]:
        if within:
            return [seconds for began, seconds in timed if since <= began and began + seconds <= until]
        return [seconds for began, seconds in timed if began + seconds >= since and began <= until]

    seconds = of(canary.samples)
    return Figures(
        p50=float(np.quantile(seconds, 0.5)) if seconds else math.nan,
        worst=max(seconds, default=math.nan),
        failures=len(of(canary.failed)),
        lag=max(of(canary.probes), default=math.nan),
    )


def broken(played: Played, row: Row, rise: float) -> list[str]:
    """Return descriptions of the broken bounds; `rise` replaces the default bound."""
    before, beside, after = played.before, played.beside, played.after
    if before is None or beside is None or after is None:
        return []
    bounds, found = row.bounds, []
    if failures := beside.failures + after.failures:
        found.append(f"{failures} of the canary's requests failed")
    elif math.isnan(beside.worst) or math.isnan(after.worst):
        found.append("the canary received no answer")
    if bounds.rise is not None:
        base = max(before.worst, played.control.worst if played.control else 0.0)
        if beside.worst - base > rise:
            found.append(f"the canary's worst latency rose by {(beside.worst - base) * 1e3:.0f} ms (bound {rise * 1e3:.0f} ms)")
    if bounds.times is not None and beside.worst > bounds.times * before.worst:
        found.append(f"the canary's worst latency is {beside.worst / before.worst:.1f} times that before (bound {bounds.times:g})")
    if bounds.answered is not None and played.longest > bounds.answered:
        found.append(f"an attacker was answered after {played.longest:.1f} s (bound {bounds.answered:g} s)")
    found += [f"{played.answers[answer]} attackers: {answer}" for answer in sorted(row.wrong & played.answers.keys())]
    return found + _grown(played, row)


def _grown(played: Played, row: Row) -> list[str]:
    found, before = [], played.resident_before
    for words, size, bound in (
        ("afterwards", played.resident_after, row.bounds.grown),
        ("during the attack", played.resident_most, row.bounds.held),
    ):
        if before is not None and size is not None and bound is not None and size - before > bound:
            found.append(f"resident size {(size - before) / MIB:+.0f} MiB {words} (bound {bound / MIB:.0f} MiB)")
    return found
