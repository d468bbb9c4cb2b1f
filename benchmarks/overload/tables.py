"""The parts of the study, each a table."""

import math
from collections.abc import Sequence
from typing import Any

import attrs

from benchmarks.overload.judge import Verdict
from benchmarks.overload.scenarios import Scenario
from benchmarks.overload.study import (
    BURST_AT,
    BURST_SECONDS,
    BURST_TIMES,
    GRADIENT2,
    LATEGATE,
    NONE,
    Cell,
    TestBed,
    best,
    best_fixed,
    capacity,
    cells,
    flags,
    thinnings,
)


@attrs.define
class Study:
    """Runs all seeds of every cell; the first `tuning` seeds choose what is tuned in hindsight.

    `steady` is the workload that determines the capacity of those that change.
    """

    bench: TestBed
    seeds: Sequence[int]
    tuning: int
    steady: Scenario
    capacities: dict[str, float] = attrs.field(factory=dict)

    def capacity(self, scenario: Scenario) -> float:
        """Return the capacity before any drop, because a changing capacity has no single value."""
        if scenario.name not in self.capacities:
            # A mix that changes has the capacity of its later mix, which asks for more.
            steady = self.steady if scenario.drop is not None or scenario.later is not None else scenario
            self.capacities[scenario.name] = capacity(self.bench, steady, self.seeds[: self.tuning])
        return self.capacities[scenario.name]

    def cells(self, scenario: Scenario, contender: str, rate: float, **more: Any) -> list[Cell]:
        return cells(scenario, contender, rate, self.seeds, **more)

    # The workloads

    def light(self, scenarios: Sequence[Scenario], part: float) -> list[dict[str, Any]]:
        """Compare refusals below capacity, where no request should be refused."""
        rows = []
        for scenario in scenarios:
            rate = part * self.capacity(scenario)
            verdict = self.bench.of(self.cells(scenario, LATEGATE, rate))
            plain = self.bench.of(self.cells(scenario, NONE, rate))
            rows.append(
                {
                    "workload": scenario.name,
                    "rate": rate,
                    "offered": verdict.offered,
                    "refused": verdict.refused,
                    "goodput_of_none": ratio(verdict, plain),
                    "misses": verdict.miss_share,
                    "misses_of_none": plain.miss_share,
                }
            )
        return rows

    def overload(self, scenarios: Sequence[Scenario], loads: Sequence[float]) -> list[dict[str, Any]]:
        """Compare the goodput with that of the alternatives."""
        return [self._overload(scenario, load) for scenario in scenarios for load in loads]

    def _overload(self, scenario: Scenario, load: float) -> dict[str, Any]:
        steady = self.capacity(scenario)
        rate = load * steady
        fixed, by_limit = best_fixed(self.bench, scenario, rate, self.seeds, self.tuning)
        _, thinned = best(self.bench, scenario, thinnings(steady), rate, self.seeds, self.tuning)
        flag, flagged = best(self.bench, scenario, flags(), rate, self.seeds, self.tuning)
        ours = self.bench.of(self.cells(scenario, LATEGATE, rate))
        others = {name: self.bench.of(self.cells(scenario, name, rate)) for name in (NONE, GRADIENT2)}
        row = {"workload": scenario.name, "load": load, "rate": rate, **described(ours)}
        row |= {"best_fixed": fixed, "of_fixed": ratio(ours, by_limit), "fixed": described(by_limit)}
        row |= {"of_thinning": ratio(ours, thinned), "thinning": described(thinned)}
        row |= {"best_flags": flag, "flags": described(flagged)}
        return row | {name: described(verdict) for name, verdict in others.items()}

    # Tenants, bursts, retries

    def tenants(self, scenario: Scenario, loads: Sequence[float]) -> list[dict[str, Any]]:
        """Compare tenants: three ask for less than their share, one asks for all the rest."""
        rows = []
        steady = self.capacity(scenario)
        for load in loads:
            modest = 0.2 / load
            shares = (("a", modest), ("b", modest), ("c", modest), ("flood", 1 - 3 * modest))
            for contender in (LATEGATE, NONE):
                verdict = self.bench.of(self.cells(scenario, contender, load * steady, tenants=shares))
                satisfied = verdict.satisfaction()
                rows.append(
                    {
                        "workload": scenario.name,
                        "load": load,
                        "admission": contender,
                        "jain": verdict.jain,
                        "worst": min(satisfied.values(), default=0.0),
                        "goodput": verdict.goodput,
                        "kept": {tenant: good / asked for tenant, (asked, good) in sorted(verdict.tenants.items())},
                    }
                )
        return rows

    def bursts(self, scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
        """Measure recovery: ten seconds at ten times the capacity, on top of 0.7 times."""
        rows: list[dict[str, Any]] = []
        groups = []
        for scenario in scenarios:
            steady = self.capacity(scenario)
            burst = (BURST_AT, BURST_AT + BURST_SECONDS, BURST_TIMES * steady)
            for contender in (LATEGATE, NONE):
                rows.append({"workload": scenario.name, "admission": contender})
                groups.append(self.cells(scenario, contender, 0.7 * steady, burst=burst))
        for row, seconds in zip(rows, self.bench.recoveries(groups), strict=True):
            row["recovered_after"] = seconds
        return rows

    def retries(self, scenario: Scenario, load: float) -> list[dict[str, Any]]:
        """Compare clients that give up, that obey Retry-After, and that retry at once."""
        rate = load * self.capacity(scenario)
        rows = []
        for retry in ("none", "obey", "naive"):
            verdict = self.bench.of(self.cells(scenario, LATEGATE, rate, retry=retry))
            off = sorted(verdict.hinted)
            rows.append(
                {
                    "workload": scenario.name,
                    "load": load,
                    "clients": retry,
                    **described(verdict),
                    "kept_in_the_end": verdict.kept / verdict.offered,
                    "returned": verdict.returned,
                    "admitted_at_first_return": verdict.at_first / verdict.returned if verdict.returned else None,
                    "hint_off_p50": off[len(off) // 2] if off else None,
                }
            )
        return rows


def ratio(verdict: Verdict, other: Verdict) -> float:
    """Return the goodput relative to another one's."""
    return verdict.goodput / other.goodput if other.goodput else math.inf


def described(verdict: Verdict) -> dict[str, Any]:
    """Return the figures that the tables show."""
    return {
        "goodput": verdict.goodput,
        "misses": verdict.miss_share,
        "wasted": verdict.wasted_share,
        "class_ratio": verdict.class_ratio,
        "ttft_p99": verdict.ttft(0.99),
        "preemptions": verdict.preemptions,
        "refused": verdict.refused,
        "refused_late": verdict.slow_refusals / verdict.refused if verdict.refused else 0.0,
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def overload_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["workload", "load", "offered/s", "goodput/s", "vs. best fixed limit", "(which)", "vs. thinning", "missed", "wasted"]
    head += ["class ratio", "TTFT p99", "no control (class ratio)", "vLLM's flags", "Gradient2"]
    lines = []
    for row in rows:
        goodput = row["goodput"]
        others = [
            f"{percent(row[name]['goodput'] / (goodput or math.inf))} ({row[name]['class_ratio']:.2f})"
            for name in ("none", "flags", "gradient2")
        ]
        fixed = row["best_fixed"].removeprefix("fixed:").replace(":", ", ") + " s"
        cells = [row["workload"], f"{row['load']:g}", f"{row['rate']:.1f}", f"{goodput:.2f}", percent(row["of_fixed"]), fixed]
        cells += [percent(row["of_thinning"]), percent(row["misses"], 2), percent(row["wasted"], 1), f"{row['class_ratio']:.2f}"]
        lines.append([*cells, f"{row['ttft_p99']:.2f} s", *others])
    return markdown(head, lines)


def light_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["workload", "offered/s", "requests", "refused", "goodput vs. no control", "missed", "missed without control"]
    lines = []
    for row in rows:
        cells = [row["workload"], f"{row['rate']:.1f}", str(row["offered"]), str(row["refused"]), percent(row["goodput_of_none"], 1)]
        lines.append([*cells, percent(row["misses"], 2), percent(row["misses_of_none"], 2)])
    return markdown(head, lines)


def tenants_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["workload", "load", "admission", "Jain", "worst tenant's part of its share", "SLO met: a, b, c", "SLO met: flood"]
    lines = []
    for row in rows:
        cells = [row["workload"], f"{row['load']:g}", row["admission"], f"{row['jain']:.3f}", percent(row["worst"])]
        lines.append([*cells, ", ".join(percent(row["kept"][tenant]) for tenant in "abc"), percent(row["kept"]["flood"])])
    return markdown(head, lines)


def bursts_table(rows: Sequence[dict[str, Any]]) -> str:
    def after(seconds: float | None) -> str:
        return "not within the run" if seconds is None else f"{seconds:.1f} s"

    return markdown(
        ["workload", "admission", "recovered after"], [[row["workload"], row["admission"], after(row["recovered_after"])] for row in rows]
    )


def retries_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["clients", "SLO met in the end", "missed", "wasted", "retried", "admitted at the first retry", "hint error, p50"]
    lines = []
    for row in rows:
        cells = [
            row["clients"],
            percent(row["kept_in_the_end"]),
            percent(row["misses"], 2),
            percent(row["wasted"], 1),
            str(row["returned"]),
        ]
        first = percent(row["admitted_at_first_return"]) if row["returned"] else "-"
        lines.append([*cells, first, "-" if row["hint_off_p50"] is None else f"{row['hint_off_p50']:.2f} s"])
    return markdown(head, lines)


def cost_table(found: dict[str, float]) -> str:
    return markdown(["decision", "median"], [[name, f"{micros:.1f} us"] for name, micros in found.items()])
