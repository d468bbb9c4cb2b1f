"""Measures each behaviour with each tool, and compares with the truth: `python -m benchmarks truth`."""

import asyncio
import datetime
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil

from benchmarks.truth.behaviours import TOKENS, Behaviour
from benchmarks.truth.figures import TOLERANCE, Figures, truth, wrong_counts, wrong_times
from benchmarks.truth.server import serve
from benchmarks.truth.tools import CONCURRENCY, REQUESTS, Ours, Tool, Unmeasured

COMMAND = "python -m benchmarks truth --peer guidellm=... --peer aiperf=... --peer vllm=... --page docs/truth.md"
RULES = (
    "Counts must be exact: the requests of each outcome, and the tokens of complete answers.",
    "The peers tell only complete answers from failures, so only these two numbers count for them.",
    f"The medians of TTFT, ITL, TPOT and E2E must be within {TOLERANCE * 1000:.0f} ms, where the tool reports them.",
    "What GuideLLM and AIPerf call inter-token latency is TPOT, and is compared with that; they report no gap for each token.",
    "A run whose times are wrong by less than 15 ms is measured once more, because other programs share the machine.",
)
SLACK_RULE = "The machine had other work, so TTFT and E2E, which contain the delay of each program's turn, may differ by {:.0f} ms more."
# Other work on the machine makes times wrong now and then, a wrong definition always.
ATTEMPTS, NEAR = 2, 0.015


class Cell(msgspec.Struct, kw_only=True):
    """One tool's measurement of one behaviour.

    Attributes:
        problem: Why nothing was measured.
    """

    behaviour: str
    tool: str
    attempts: int
    true: Figures
    measured: Figures | None = None
    problem: str = ""

    def wrong(self, slack: float = 0.0) -> list[str]:
        """Return a clause for each wrong figure; `slack` is as for `wrong_times`."""
        if self.measured is None:
            return [self.problem]
        return [*wrong_counts(self.true, self.measured), *wrong_times(self.true, self.measured, slack=slack)]


class Truth(msgspec.Struct, kw_only=True):
    """All cells, and what they were measured on."""

    date: str
    machine: str
    versions: dict[str, str]
    cells: list[Cell] = []

    def cell(self, behaviour: str, tool: str) -> Cell | None:
        return next((cell for cell in self.cells if (cell.behaviour, cell.tool) == (behaviour, tool)), None)

    def ours_wrong(self, slack: float) -> list[Cell]:
        return [cell for cell in self.cells if cell.tool == Ours().name and cell.wrong(slack)]


def begin(versions: dict[str, str]) -> Truth:
    """Return a study without cells."""
    machine = f"{psutil.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return Truth(date=datetime.datetime.now(datetime.UTC).date().isoformat(), machine=machine, versions=versions)


async def measure(
    found: Truth, behaviours: Sequence[Behaviour], tools: Sequence[Tool], report: Callable[[Cell], None], jobs: int = 1
) -> None:
    """Measure the cells that are not there yet, `jobs` at a time, behaviour by behaviour."""
    known = {(cell.behaviour, cell.tool) for cell in found.cells}
    work = iter([(behaviour, tool) for behaviour in behaviours for tool in tools if (behaviour.name, tool.name) not in known])

    async def worker() -> None:
        for behaviour, tool in work:
            cell = await measure_cell(behaviour, tool)
            found.cells.append(cell)
            report(cell)

    await asyncio.gather(*(worker() for _ in range(jobs)))


async def measure_cell(behaviour: Behaviour, tool: Tool) -> Cell:
    """Measure a behaviour, again if only times are wrong, and by little."""
    for attempt in range(1, ATTEMPTS + 1):
        measured, problem = None, ""
        async with serve(behaviour) as (url, server):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    measured = await tool.measure(url, behaviour, Path(folder))
                except Unmeasured as error:
                    problem = str(error)
        true = truth(server.log)
        cell = Cell(behaviour=behaviour.name, tool=tool.name, attempts=attempt, true=true, measured=measured, problem=problem)
        if measured is None or not cell.wrong() or wrong_counts(true, measured) or wrong_times(true, measured, NEAR):
            break
    return cell


def page(found: Truth, behaviours: Sequence[Behaviour], slack: float = 0.0) -> str:
    """Return the results as a page of the documentation; `slack` is as for `wrong_times`."""
    tools = list(found.versions)
    rows = [(behaviour, [found.cell(behaviour.name, tool) for tool in tools]) for behaviour in behaviours]
    right = [sum(1 for _, cells in rows if (cell := cells[number]) and not cell.wrong(slack)) for number in range(len(tools))]
    lines = [
        "# What load generators report of a known server",
        "",
        "A scripted server logs when it wrote which token, and how each request ended.",
        "Each tool measures it as a user would, and this page compares the tool's figures with that log.",
        "",
        "<!-- not run: takes an hour, and needs the peers -->",
        "```sh",
        COMMAND + (f" --slack {slack * 1000:.0f}" if slack else ""),
        "```",
        "",
        f"Measured on {found.date}: {found.machine}.",
        f"Each cell is one run of {REQUESTS} requests of {TOKENS} tokens by {CONCURRENCY} clients.",
        "",
        "| tool | version | behaviours reported right |",
        "|---|---|---|",
        *(f"| {tool} | {found.versions[tool]} | {count} of {len(rows)} |" for tool, count in zip(tools, right, strict=True)),
        "",
        *RULES,
        *([SLACK_RULE.format(slack * 1000)] if slack else []),
        "",
        f"| behaviour | what the server does | {' | '.join(tools)} |",
        "|---|---|" + "---|" * len(tools),
    ]
    lines += [
        f"| `{behaviour.name}` | {behaviour.does} | {' | '.join(_written(cell, slack) for cell in cells)} |" for behaviour, cells in rows
    ]
    return "\n".join(lines) + "\n"


def _written(cell: Cell | None, slack: float) -> str:
    if cell is None:
        return "-"
    return "; ".join(clause.replace("|", "\\|") for clause in cell.wrong(slack)) or "ok"
