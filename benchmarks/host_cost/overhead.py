"""Measures the CPU time of the process that holds the engine's client: ours and vLLM's.

Tokens per second are those of a closed loop. CPU per token is that of the host processes, so it is
valid even where they share a core with their client. Ratios compare two variants in the same round.
"""

import statistics
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.host_cost.server_processes import Setting
from benchmarks.host_cost.variants import Trial, open_sides

# What each variant is compared with: the peers that do the same, or our next-best path.
AGAINST = (
    ("inprocess", "bare"),
    ("http", "vllm"),
    ("http", "vllm-rust"),
    ("chat", "vllm-chat"),
    ("chat", "vllm-rust-chat"),
    ("http", "http-unheld"),
    ("http:4", "vllm:4"),
    ("http:4", "vllm-rust"),
    ("chat:4", "vllm-chat:4"),
    ("chat:4", "vllm-rust-chat"),
    ("tcp", "http"),
    ("unix", "http"),
)
# With several engines the counts differ from run to run: each pool and cluster is compared with all of these.
POOLS, PEERS = ("pool:", "cluster:"), ("direct:", "pool:", "http", "vllm")


class Point(msgspec.Struct, kw_only=True):
    """All rounds with one number of streams: each variant's trials in the order of rounds."""

    streams: int
    core: str
    # The name in files that were written before.
    trials: dict[str, list[Trial]] = msgspec.field(name="legs")


async def measure(
    names: Sequence[str], setting: Setting, streams: Sequence[int], rounds: int, report: Callable[[str], None]
) -> list[Point]:
    """Run each variant once per round, in turns, after a warm-up round.

    Raises TargetError when all requests of a trial fail.
    """
    points: list[Point] = []
    # A stubbed core waits for exactly the number of streams that it was started with.
    groups = [list(streams)] if setting.core != "stubbed" else [[number] for number in streams]
    for group in groups:
        report(f"starting {', '.join(names)}")
        async with open_sides(names, setting, max(group)) as sides:
            for number in group:
                point = Point(streams=number, core=setting.core, trials={name: [] for name in names})
                points.append(point)
                for which in range(rounds + 1):
                    for name in list(names) if which % 2 else list(names)[::-1]:
                        trial = await sides[name](number, which)
                        word = f"round {which} of {rounds}" if which else "warm-up"
                        report(f"{number} streams, {word}: {name} {_brief(trial)}")
                        if which:
                            point.trials[name].append(trial)
    return points


def _brief(trial: Trial) -> str:
    cpu, wait = f"{trial.cpu_microseconds_per_token:.1f} us of CPU per token", f"p99 TTFT {trial.ttft_p99 * 1000:,.0f} ms"
    return f"{trial.tokens_per_second:,.0f} tokens/s, {cpu}, {wait}" + (
        f", {trial.failed} failed ({trial.failure})" if trial.failed else ""
    )


def conclude(points: Sequence[Point]) -> str:
    """Return Markdown: medians with ranges, and ratios of the variants in `AGAINST`."""
    lines: list[str] = []
    for point in points:
        lines += [
            f"**{point.streams} streams, {point.core} engine core**",
            "",
            "| variant | tokens/s | us of CPU per token | tokens per event | longest gap, ms | p50 TTFT, ms | p99 TTFT, ms | failed |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, trials in point.trials.items():
            cells = [
                spread([trial.tokens_per_second for trial in trials], 0),
                spread([trial.cpu_microseconds_per_token for trial in trials], 1),
                spread([trial.tokens_per_event for trial in trials], 2),
                spread([trial.gap_p99 * 1000 for trial in trials], 0),
                spread([trial.ttft_p50 * 1000 for trial in trials], 0),
                spread([trial.ttft_p99 * 1000 for trial in trials], 0),
                str(sum(trial.failed for trial in trials)),
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
        lines += [_ratio(point, *pair) for pair in (*AGAINST, *_pools(point)) if all(name in point.trials for name in pair)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _pools(point: Point) -> list[tuple[str, str]]:
    return [
        (name, other)
        for name in point.trials
        if name.startswith(POOLS)
        for other in point.trials
        if other.startswith(PEERS) and other != name
    ]


def _ratio(point: Point, name: str, other: str) -> str:
    pairs = list(zip(point.trials[name], point.trials[other], strict=True))
    rates = spread([one.tokens_per_second / two.tokens_per_second for one, two in pairs], 2)
    costs = spread([one.cpu_microseconds_per_token / two.cpu_microseconds_per_token for one, two in pairs], 2)
    waits = spread([one.ttft_p99 / two.ttft_p99 for one, two in pairs], 2)
    return f"- {name} over {other}: {rates} times the tokens/s, {costs} times the CPU per token, {waits} times the p99 TTFT"


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
