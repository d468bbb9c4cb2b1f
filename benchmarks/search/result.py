"""What a search found, in one sentence and a table for each target. Pure."""

from collections.abc import Sequence

import attrs

from benchmarks.analysis import report
from benchmarks.analysis.report import Analysis
from benchmarks.recording.results import Goal, Promise
from benchmarks.search.strategy import bracket
from benchmarks.search.verdict import Verdict, judge, verdicts_of

UNITS = {"rate": "requests/s", "concurrency": "concurrency"}


@attrs.frozen
class Found:
    """What a search found on one target.

    Attributes:
        bounds: The highest load that meets the SLO and the lowest that misses it, where they were found.
    """

    target: str
    goal: Goal
    sentence: str
    table: str
    bounds: tuple[float | None, float | None]

    @property
    def interval(self) -> str:
        """The result in few characters: the highest load that meets the SLO, and its interval."""
        low, high = self.bounds
        if low is None:
            return "none"
        return f"{_number(low)} [{_number(low)}, {_number(high)}]" if high is not None else f"at least {_number(low)}"


def searches(analysis: Analysis) -> list[Found]:
    """Return the result for each target; empty if the run is no search."""
    run, found = analysis.recording.run, []
    goal = run.search
    if goal is None:
        return []
    for target in dict.fromkeys(view.point.target for view in analysis.views):
        views = [view for view in analysis.views if view.point.target == target]
        verdicts = verdicts_of(views, goal, run.promise)
        # The first point of a search for a rate has one client.
        shown = verdicts or [judge(0.0, views, goal.attainment, run.promise)]
        said = sentence(f"{analysis.model} ({target})", shown, goal, run.promise, len(views))
        ends = bracket(verdicts)
        bounds = (None if ends.low is None else ends.low.load, None if ends.high is None else ends.high.load)
        found.append(Found(target, goal, said, table(shown, goal), bounds))
    return found


def conclude(analysis: Analysis) -> tuple[str, int]:
    """Return Markdown, and the exit code: 2 if a target has no load that meets the SLO."""
    found = searches(analysis)
    parts = [report.conclusion(analysis), *(text for each in found for text in (each.table, each.sentence))]
    return "\n\n".join(parts), 2 if any(each.bounds[0] is None for each in found) else 0


def sentence(name: str, verdicts: Sequence[Verdict], goal: Goal, promise: Promise, points: int) -> str:
    found, wanted, unit = bracket(verdicts), objective(goal, promise), goal.loop
    least = min(verdicts, key=lambda each: each.load)
    if found.low is None:
        where = f"at {amount(least.load, goal)}" if least.load else "of requests alone on the server"
        return f"{name}: no {unit} that was measured, in {points} points, meets the objective ({wanted}): {where}, {_reason(least)}."
    low = found.low
    at = f"there {low.share:.1%} of {low.sent:,} requests did (at least {low.low:.1%})"
    if found.high is None:
        above = f"No {unit} that misses it was measured in {points} points."
        return f"{name}: the objective ({wanted}) is {_kept(low)} at {amount(low.load, goal)} and perhaps above; {at}. {above}"
    high = found.high
    span = f"[{_number(low.load)}, {_number(high.load)}]"
    doubt = _doubt(verdicts, found.unclear, goal)
    return (
        f"{name}: the highest {unit} that {_meets(low)} the objective ({wanted}) is {amount(low.load, goal)} {span}, "
        f"found in {points} points; {at}. At {amount(high.load, goal)}, {_reason(high)}.{doubt}"
    )


def _kept(low: Verdict) -> str:
    return "met" if low.outcome == "met" else "probably met"


def _meets(low: Verdict) -> str:
    return "meets" if low.outcome == "met" else "probably meets"


def _doubt(verdicts: Sequence[Verdict], unclear: Sequence[float], goal: Goal) -> str:
    """Say why the loads between the bounds are unclear: no valid point, or too few requests."""
    each = [verdict for load in unclear for verdict in verdicts if verdict.load == load]
    invalid, short = ([verdict for verdict in each if bool(verdict.faults) == kind] for kind in (True, False))
    said = ""
    if short:
        span = f"{min(verdict.low for verdict in short):.1%} to {max(verdict.high for verdict in short):.1%}"
        said += f" At {_where(short, goal)}, the points are too short to tell ({span} of the requests)."
    if invalid:
        reason = "; ".join(invalid[0].faults)
        said += f" At {_where(invalid, goal)}, no point is valid, so the limit may be the generator's: {reason}."
    return said


def _where(verdicts: Sequence[Verdict], goal: Goal) -> str:
    *most, last = (amount(verdict.load, goal) for verdict in verdicts)
    return f"{', '.join(most)} and {last}" if most else last


def _reason(verdict: Verdict) -> str:
    share = f"{verdict.share:.1%} of {verdict.sent:,} requests did"
    if not verdict.growing:
        return f"{share} (at most {verdict.high:.1%})"
    served = "" if verdict.served is None else f": the server answers {_number(verdict.served)} requests/s"
    return f"{share}, and the requests in flight grow without end{served}"


def objective(goal: Goal, promise: Promise) -> str:
    """Say what a load must do."""
    bounds = [
        f"{name} of at most {value * 1000:,.0f} ms" for name, value in (("TTFT", promise.ttft), ("TPOT", promise.tpot)) if value is not None
    ]
    return f"{' and a '.join(bounds) or 'an answer'} for {goal.attainment:.4g} of the requests"


def table(verdicts: Sequence[Verdict], goal: Goal) -> str:
    """Return a Markdown table with one line per load, in ascending order."""
    lines = [
        f"| {UNITS[goal.loop]} | points | requests | met the SLO | 90 % interval | backlog | objective |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in sorted(verdicts, key=lambda each: each.load):
        backlog = "-" if goal.loop == "concurrency" else "grows" if each.growing else "steady"
        outcome = {"met": "met", "likely": "probably met", "unlikely": "probably missed", "missed": "missed"}[each.outcome]
        span = f"{each.low:.1%} to {each.high:.1%}"
        lines.append(f"| {_number(each.load)} | {each.points} | {each.sent} | {each.share:.1%} | {span} | {backlog} | {outcome} |")
    return "\n".join(lines)


def amount(load: float, goal: Goal) -> str:
    """Write a load with its unit."""
    return f"concurrency {load:.0f}" if goal.loop == "concurrency" else f"{_number(load)}/s"


def _number(value: float) -> str:
    return f"{value:.4g}"
