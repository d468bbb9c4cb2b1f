"""What a sweep measures next, how it is resumed, and what it reports while it runs."""

import io
import shlex

import attrs
import msgspec
import pytest
from queue_server import Queue, measure

from benchmarks.__main__ import main
from benchmarks.analysis import report
from benchmarks.generator.run import Progress
from benchmarks.recording import storage
from benchmarks.recording.results import Point, Recording, Run
from benchmarks.sweep import resume, session
from benchmarks.sweep.dashboard import open_dashboard
from benchmarks.sweep.display import Display
from benchmarks.sweep.planner import Listed, Sizes, is_narrow
from benchmarks.sweep.quick import Quick
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Fixed

SWEEP = ["sweep", "--engine", "simulated", "--no-ceiling", "--requests", "4", "--output-tokens", "4", "--concurrency", "1,2,3"]
CLOSED = [Load(concurrency=number) for number in (1, 2)]


def listed(**changes):
    return Listed(**{"loads": CLOSED, "prompts": [Fixed(8)], "sizes": Sizes(requests=8), **changes})


async def test_a_repeat_follows_all_other_points_of_all_targets(tmp_path):
    recording = await measure([Queue(name="a"), Queue(name="b")], listed(repeats=2), tmp_path)
    order = [(point.repeat, point.concurrency, point.target) for point in recording.run.points]
    assert order == [(repeat, number, name) for repeat in (0, 1) for number in (1, 2) for name in ("a", "b")]


@pytest.mark.parametrize(("spread", "points"), [(0.0, 4), (0.5, 10)])
async def test_a_load_is_repeated_until_its_interval_is_narrow(spread, points, tmp_path):
    """A server of constant speed needs two repeats; one whose speed varies gets all five."""
    recording = await measure([Queue(spread=spread)], listed(repeats=5, width=0.05), tmp_path)
    assert len(recording.run.points) == points


def test_one_repeat_has_no_interval():
    assert not is_narrow([], 0.05)


async def test_quick_ends_beyond_the_knee(tmp_path):
    """The server answers eight requests at once, so 16 gain nothing."""
    recording = await measure([Queue(servers=8)], Quick(prompt=Fixed(8), seconds=1e9), tmp_path)
    assert [point.concurrency for point in recording.run.points] == [1, 2, 4, 8, 16]


async def test_quick_ends_when_its_time_is_over(tmp_path):
    recording = await measure([Queue(servers=10_000)], Quick(prompt=Fixed(8), seconds=4.0), tmp_path)
    assert len(recording.run.points) == 7
    assert sum(point.seconds for point in recording.run.points) <= 4.0


def test_quick_takes_no_loads(call):
    found = call(main, "sweep", "--quick", "--concurrency", "1")
    assert (found.returncode, "--quick chooses the loads" in found.stderr) == (2, True)


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, call):
    """The second point was cut short, so it is measured again; the first one is kept."""
    out = tmp_path / "run.json"
    command = [*SWEEP, "--out", str(out)]
    assert call(main, *command).returncode == 0
    whole = storage.read(out)
    cut = msgspec.structs.replace(whole.run.points[1], complete=False)
    points = [whole.run.points[0], cut]
    records = [record for record in whole.records if record.point < 2]
    storage.write(out, Recording(msgspec.structs.replace(whole.run, points=points), records))
    assert call(main, *command, "--resume").returncode == 0
    found = storage.read(out)
    assert [(point.concurrency, point.complete) for point in found.run.points] == [(1, True), (2, True), (3, True)]
    assert found.run.points[0] == whole.run.points[0]
    assert found.run.command == whole.run.command
    assert len(found.records) == len(whole.records)
    assert [record for record in found.records if record.point == 0] == [record for record in whole.records if record.point == 0]


def test_a_resume_without_a_file_starts_one(tmp_path, call):
    out = tmp_path / "run.json"
    assert call(main, *SWEEP, "--out", str(out), "--resume").returncode == 0
    assert len(storage.read(out).run.points) == 3


def test_a_file_of_another_command_is_not_continued(tmp_path, call):
    out = tmp_path / "run.json"
    assert call(main, *SWEEP, "--out", str(out)).returncode == 0
    before = out.read_bytes()
    found = call(main, *SWEEP, "--seed", "2", "--resume", "--out", str(out))
    assert found.returncode == 2
    command = shlex.join(["python", "-m", "benchmarks", *SWEEP, "--out", str(out)])
    assert f"was made by a different command: {command}" in found.stderr.splitlines()[-1]
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workload": {"digest": "other"}}, "sent other requests"),
        ({"provenance": {"versions": {"vllm": "0.1"}}}, "another versions"),
    ],
)
def test_a_run_of_other_requests_or_versions_is_not_continued(changes, words):
    run = Run(command="", started="", provenance={}, workload={})
    with pytest.raises(resume.TargetError, match=words):
        resume.continued(Recording(msgspec.structs.replace(run, **changes)), run)


def line(number=0, **changes):
    return Point(number=number, target="t", concurrency=2, prompt="8", complete=True, **changes)


async def view(tmp_path):
    recording = await measure([Queue()], listed(loads=CLOSED[:1]), tmp_path)
    return report.analyse(recording).views[0]


async def test_each_point_is_one_line_of_a_log(tmp_path):
    file, now = io.StringIO(), [0.0]
    display = Display(file, lambda: now[0])
    display.start(line(), 100)
    for second in range(1, 101):
        now[0] = float(second)
        display.progress(Progress(done=second, in_flight=2, tokens=10 * second, ttft=0.02))
    display.end(line(), await view(tmp_path))
    lines = file.getvalue().splitlines()
    assert lines[0] == "point 0, t, concurrency 2, prompt 8: 100 requests"
    assert lines[1] == "point 0, t, concurrency 2, prompt 8: 1 of 100 answered, 2 in flight, 10 tokens/s, TTFT 20 ms"
    assert "tokens/s" in lines[-1]
    assert "TTFT p50 100 ms" in lines[-1]
    assert len(lines) == 2 + 7


async def test_the_dashboard_leaves_one_line_for_each_point(tmp_path):
    from rich.console import Console

    file = io.StringIO()
    found = await view(tmp_path)
    with open_dashboard(Console(file=file, force_terminal=True, width=120, color_system=None)) as dashboard:
        dashboard.start(line(), 100)
        dashboard.progress(Progress(done=50))
        for number in range(20):
            dashboard.end(line(number), found)
        (table,) = dashboard.drawn()
        assert table.row_count == 12
    assert [f"point {number}, t, concurrency 2, prompt 8: " in file.getvalue() for number in range(20)] == [True] * 20


def test_lines_are_written_where_there_is_no_terminal():
    with session.open_display() as display:
        assert type(display) is Display


def test_a_task_knows_its_points():
    task = attrs.evolve(listed().foreseen(["t"])[1], repeat=3)
    assert task.is_of(line())
    assert not task.is_of(msgspec.structs.replace(line(), target="u"))
