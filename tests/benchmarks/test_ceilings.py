"""The CPU time of load generators, which are programs with processes of their own."""

import os
import sys

import anyio
import attrs
import pytest

from benchmarks.studies import ceilings
from benchmarks.studies.ceilings import Row, cpu_seconds, measure, table, watch_sessions
from benchmarks.truth.behaviours import TOKENS
from benchmarks.truth.figures import Figures
from benchmarks.truth.tools import Load, Unmeasured

# A program whose child uses CPU time, and is not waited for.
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=sys.stdin); sys.stdin.read()"
CHILD = "import sys, time\nwhile time.process_time() < 0.5: pass\nsys.stdin.read()"


@pytest.fixture
def anyio_backend():
    """Programs need asyncio's own clock."""
    return "asyncio"


@pytest.mark.anyio
async def test_processes_that_nobody_waits_for_count():
    """Regression: GuideLLM's CPU time was that of its start."""
    spent: dict[tuple[int, float], float] = {}
    process = await anyio.open_process([sys.executable, "-c", PARENT, CHILD], start_new_session=True)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_sessions, spent)
            while not any(seconds >= 0.3 and pid != process.pid for (pid, _), seconds in spent.items()):
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert process.stdin is not None
        await process.stdin.aclose()
        await process.wait()
    assert os.getpid() not in {pid for pid, _ in spent}
    await process.aclose()


@attrs.frozen
class Fake:
    """A tool that reads `read` tokens of each answer."""

    load: Load
    name: str = "fake"
    read: int = TOKENS

    async def measure(self, url, behaviour, folder):
        return Figures(outcomes={"ok": self.load.requests}, tokens=self.read * self.load.requests, times={})


@pytest.mark.anyio
async def test_each_round_measures_each_tool_with_few_requests_and_with_many(monkeypatch):
    """The start costs 2 s of CPU time, and a request 0.5 or 0.001 s."""
    runs = []

    async def cpu_seconds(tool, url, load):
        runs.append((tool.name, load.requests))
        return 2.0 + load.requests * {"one": 0.5, "two": 0.25, "three": 0.001}[tool.name]

    monkeypatch.setattr(ceilings, "cpu_seconds", cpu_seconds)
    tools, rows = [Fake(Load(), name) for name in ("one", "two")], [Row("one", "1"), Row("two", "2")]
    await measure(tools, rows, Load(requests=4), 10, 2, lambda row: None)
    assert runs == [("one", 4), ("one", 14), ("two", 4), ("two", 14)] * 2
    assert [row.chunks_per_core_second for row in rows] == [[2.0 * TOKENS] * 2, [4.0 * TOKENS] * 2]
    with pytest.raises(Unmeasured, match="three: 10 requests cost no more than its start varies"):
        await measure([Fake(Load(), "three")], [Row("three", "1")], Load(requests=4), 10, 1, lambda row: None)


@pytest.mark.anyio
async def test_a_tool_that_did_not_read_every_token_has_no_figure():
    with pytest.raises(Unmeasured, match=r"fake: of 4 requests: \{'ok': 4\}, with 4 tokens"):
        await cpu_seconds(Fake(Load(), read=1), "http://h", Load(requests=4))


def test_the_table_compares_each_tool_with_the_first_in_the_same_round():
    found = table([Row("ours", "1", [100.0, 1000.0, 200.0]), Row("theirs", "2", [50.0, 100.0, 20.0])])
    assert found.splitlines()[2:] == ["| ours | 1 | 200 (100 to 1,000) | 1 |", "| theirs | 2 | 50 (20 to 100) | 10.0 (2.0 to 10.0) |"]
