"""The league: every contender on the same loads, with what each decides by.

A contender with variants is tuned in hindsight for each load, on the first seed; the rows cover all
seeds.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import attrs

from benchmarks.overload.judge import Verdict, together
from benchmarks.overload.scenarios import Scenario
from benchmarks.overload.study import NONE, Cell, cells, play, run, setup
from benchmarks.overload.tables import Study, markdown, percent
from benchmarks.stand_ins.admission_policies import NAMES, contender, variants
from benchmarks.stand_ins.contender import Known
from llmserve.admission import AdmissionController

# Share of the capacity at which requests are alone.
UNLOADED = 0.02
# The contender with which goodputs are compared.
REFERENCE = "fixed"


@attrs.frozen
class Race:
    """A contender's verdict in one cell, and the lowest, median and highest value of each of its signals."""

    verdict: Verdict
    signals: dict[str, tuple[float, float, float]]


def race(cell: Cell) -> Race:
    signals = contender(cell.contender.split(":")[0]).SIGNALS
    seen: dict[str, list[float]] = {name: [] for name in signals}

    def watch(admission: AdmissionController) -> None:
        for name, read in signals.items():
            value = read(admission)
            if value is not None:
                seen[name].append(value)

    verdict = run(cell, watch)
    return Race(verdict, {name: (min(values), statistics.median(values), max(values)) for name, values in seen.items() if values})


def measured(scenario: Scenario, capacity: float, seed: int) -> tuple[Known, dict[str, float]]:
    """Return what an operator of a scenario knows, and the times of requests that have the engine alone."""
    asked, _ = play(Cell(scenario=scenario, contender=NONE, rate=capacity, seed=seed, even=True))
    ended = [one.finished - one.sent for one in asked if one.finished is not None]
    lengths = [
        (statistics.fmean(values), statistics.pstdev(values)) for values in zip(*((one.prompt, one.output) for one in asked), strict=True)
    ]
    known = Known(capacity=capacity, latency=statistics.fmean(ended), prompt=lengths[0], answer=lengths[1])
    alone, _ = play(Cell(scenario=scenario, contender=NONE, rate=max(UNLOADED * capacity, 0.05), seed=seed, even=True))
    firsts = sorted(one.first - one.sent for one in alone if one.first is not None)
    paces = [(one.finished - one.first) / (one.output - 1) for one in alone if one.first and one.finished and one.output > 1]
    times = {"ttft_p50": statistics.median(firsts), "ttft_p99": firsts[int(0.99 * len(firsts))], "tpot_p50": statistics.median(paces)}
    return known, times


@attrs.frozen
class League:
    """Runs the races on all processors; `progress` is called with the number of runs that have ended."""

    study: Study
    pool: ProcessPoolExecutor
    progress: Callable[[int], object]

    def measure(self, scenarios: Sequence[Scenario], loads: Sequence[float]) -> dict[str, Any]:
        """Return the contenders, the workloads, and a row for each workload, load and contender."""
        told = [
            {"name": name, "source": one.SOURCE, "url": one.URL, "headline": one.HEADLINE} for name in NAMES for one in [contender(name)]
        ]
        found: dict[str, Any] = {"contenders": told, "workloads": [], "rows": [], "seeds": list(self.study.seeds), "reference": REFERENCE}
        for scenario in scenarios:
            capacity = self.study.capacity(scenario)
            known, unloaded = measured(scenario, capacity, self.study.seeds[0])
            slo = {"ttft": scenario.slo.ttft, "tpot": scenario.slo.tpot}
            found["workloads"].append({"name": scenario.name, "capacity": capacity, "unloaded": unloaded, **slo})
            for load in loads:
                for name, variant in self._tuned(scenario, load * capacity, known).items():
                    heading = {"workload": scenario.name, "load": load, "rate": load * capacity, "contender": name}
                    heading["variant"] = variant.removeprefix(name)[1:]
                    races = self._races(cells(scenario, variant, load * capacity, self.study.seeds, known=known))
                    found["rows"].append(heading | row(races))
        return found

    def _tuned(self, scenario: Scenario, rate: float, known: Known) -> dict[str, str]:
        """Return the variant of each contender that is best on the first seed."""
        options = {name: variants(name, setup(scenario, known=known)) for name in NAMES}
        tried = [variant for each in options.values() if len(each) > 1 for variant in each]
        races = self._races([cells(scenario, variant, rate, self.study.seeds[:1], known=known)[0] for variant in tried])
        goodputs = {variant: one.verdict.goodput for variant, one in zip(tried, races, strict=True)}
        return {name: max(each, key=lambda variant: goodputs.get(variant, 0.0)) for name, each in options.items()}

    def _races(self, cells: Sequence[Cell]) -> list[Race]:
        races = []
        for one in self.pool.map(race, cells):
            races.append(one)
            self.progress(1)
        return races


def row(races: Sequence[Race]) -> dict[str, Any]:
    """Return the figures of one contender at one load; `goodput` has one for each seed."""
    whole = together([one.verdict for one in races])
    signals = {}
    for name in dict.fromkeys(name for one in races for name in one.signals):
        low, middle, high = zip(*(one.signals[name] for one in races if name in one.signals), strict=True)
        signals[name] = min(low), statistics.median(middle), max(high)
    return {
        "goodput": [one.verdict.goodput for one in races],
        "late": whole.miss_share,
        "class_ratio": whole.class_ratio,
        "refused": whole.refused / whole.offered if whole.offered else 0.0,
        "wasted": whole.wasted_share,
        "ttft_p99": whole.ttft(0.99),
        "signals": signals,
    }


def tables(found: dict[str, Any]) -> str:
    """Return the results as Markdown: a table for each workload and load, and the authors' headlines."""
    parts = []
    loads = itertools.groupby(found["rows"], key=lambda one: (one["workload"], one["load"]))
    for (workload, load), group in loads:
        rows = list(group)
        best = max(statistics.fmean(one["goodput"]) for one in rows if one["contender"] == REFERENCE) or 1.0
        lines = []
        for one in sorted(rows, key=lambda one: -statistics.fmean(one["goodput"])):
            mean = statistics.fmean(one["goodput"])
            spread = f"{mean:.2f} ({min(one['goodput']):.2f} to {max(one['goodput']):.2f})"
            cells = [one["contender"], one["variant"] or "-", spread, f"{mean / best:.2f}", percent(one["late"], 2)]
            lines.append([*cells, f"{one['class_ratio']:.2f}", percent(one["refused"]), f"{one['ttft_p99']:.2f} s"])
        head = ["policy", "tuned to", "goodput/s (seeds)", "of the best fixed limit", "late", "class ratio", "refused", "TTFT p99"]
        parts.append(f"### {workload}, {load:g} times its capacity\n\n{markdown(head, lines)}")
    headlines = [[one["name"], one["source"], one["headline"]] for one in found["contenders"]]
    return "\n\n".join([*parts, "### What the authors report\n\n" + markdown(["policy", "described in", "headline"], headlines)])
