"""A quiet tenant beside one that floods the engine, with nothing configured for either."""

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from benchmarks.overload.scenarios import SCENARIOS, Scenario
from benchmarks.overload.study import FLOOD, LATEGATE, NONE, QUIET, TestBed, cells
from benchmarks.overload.tables import markdown, percent
from benchmarks.overload.traffic import LengthClass, Mix

# Requests per second of the two tenants: the rates at which KVWarden measured its token bucket.
QUIET_RATE, FLOOD_RATE = 1.0, 32.0
# The 99th percentile of one request per second needs some minutes.
SECONDS = 320.0
# Its requests were short, with answers of 128 tokens.
SHORT = Scenario(name="short", mix=Mix(classes=(LengthClass("short", 1.0, (200, 0.0, 200), (128, 0.0, 128)),)))
WORKLOADS = (SHORT, *(SCENARIOS[name] for name in ("mixed", "kv-tight", "reasoning")))


def contenders(scenario: Scenario) -> tuple[str, ...]:
    """Return LateGate, the default without an SLO, a lower limit, KVWarden's bucket as it was set by hand, and no control."""
    most = scenario.size.max_num_seqs
    return LATEGATE, f"fixed:{most * 9 // 8}:{scenario.slo.ttft:g}", f"fixed:{most // 2}:{scenario.slo.ttft:g}", "kvwarden:10", NONE


def measure(bench: TestBed, seeds: Sequence[int], step_tokens: int) -> list[dict[str, Any]]:
    """Compare the quiet tenant's times to the first token with those that it has alone."""
    rows = []
    for workload in WORKLOADS:
        size = attrs.evolve(workload.size, max_num_batched_tokens=step_tokens)
        scenario = attrs.evolve(workload, seconds=SECONDS, size=size)
        for contender in contenders(scenario):
            alone = bench.of(cells(scenario, contender, QUIET_RATE, seeds))
            beside = bench.of(cells(scenario, contender, QUIET_RATE, seeds, flood=FLOOD_RATE))
            offered, kept = beside.tenants[QUIET]
            row = {"workload": scenario.name, "admission": contender, "kept": kept / offered}
            row |= {f"alone_p{share}": alone.ttft(share / 100) for share in (50, 99)}
            row |= {f"beside_p{share}": beside.ttft(share / 100) for share in (50, 99)}
            row |= {"ratio": beside.ttft(0.99) / alone.ttft(0.99), "flood": beside.tenants[FLOOD][1] / beside.seconds}
            rows.append(row)
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    head = ["workload", "admission", "alone: TTFT p50", "p99", "beside the flood: TTFT p50", "p99", "p99, of that alone"]
    lines = []
    for row in rows:
        times = [f"{row[name] * 1000:.0f} ms" for name in ("alone_p50", "alone_p99", "beside_p50", "beside_p99")]
        last = [f"{row['ratio']:.2f}", percent(row["kept"], 1), f"{row['flood']:.1f}/s"]
        lines.append([row["workload"], row["admission"], *times, *last])
    return markdown([*head, "SLO met: quiet", "SLO met: flood"], lines)
