"""A search finds the known capacity of a scripted server in few points, and says what it does not know."""

import attrs
import pytest
from queue_server import Queue, measure

from benchmarks.__main__ import main
from benchmarks.analysis import report
from benchmarks.recording.results import Goal, Promise
from benchmarks.search import result
from benchmarks.search.planner import Search
from benchmarks.search.strategy import bracket, next_load
from benchmarks.search.verdict import Verdict, bounds, needed, verdicts_of
from benchmarks.sweep.planner import Sizes
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Fixed

MAX_POINTS, ERROR = 8, 0.03


@pytest.fixture
def anyio_backend():
    """The searches wait for nothing, so one event loop is enough."""
    return "asyncio"


def search(promise, loop="rate", **changes):
    load = Load(concurrency=1, staggered=True) if loop == "concurrency" else Load(pattern="constant", rate=1.0)
    goal = Goal(loop=loop, attainment=0.99, width=ERROR)
    return Search(**{"goal": goal, "promise": promise, "prompt": Fixed(8), "load": load, "sizes": Sizes(seconds=60.0), **changes})


async def found(queue, planner, folder):
    recording = await measure([queue], planner, folder, promise=planner.promise, goal=planner.goal)
    analysis = report.analyse(recording)
    text, code = result.conclude(analysis)
    return bracket(verdicts_of(analysis.views, planner.goal, planner.promise)), len(recording.run.points), text, code


@pytest.mark.parametrize("servers", [1, 7, 20])
@pytest.mark.parametrize("start", [None, 1.0])
async def test_a_known_capacity_is_found_within_three_percent_in_eight_points(servers, start, tmp_path):
    """Arrivals are constant, so every rate up to the capacity is served at once, and none above."""
    queue = Queue(servers=servers, first=0.3, token=0.02)
    span, points, text, code = await found(queue, search(Promise(ttft=0.6), start=start), tmp_path)
    assert span.low.load == pytest.approx(queue.capacity, rel=ERROR)
    assert span.low.load <= queue.capacity * 1.001 <= span.high.load * 1.001
    assert points <= MAX_POINTS
    assert code == 0
    assert f"the highest rate that meets the objective (TTFT of at most 600 ms for 0.99 of the requests) is {span.low.load:.4g}/s" in text


@pytest.mark.parametrize("cost", [0.001, 0.0007, 0.0031])
async def test_a_known_concurrency_is_found_in_eight_points(cost, tmp_path):
    """A token takes 10 ms and `cost` for each client, so the SLO of 30 ms allows 20 ms / cost clients."""
    queue = Queue(servers=1000, first=0.1, token=lambda clients: 0.01 + cost * clients)
    span, points, _, code = await found(queue, search(Promise(tpot=0.03001), "concurrency"), tmp_path)
    assert (span.low.load, span.high.load) == (0.02001 // cost, 0.02001 // cost + 1)
    assert points <= MAX_POINTS
    assert code == 0


@pytest.mark.parametrize("loop", ["rate", "concurrency"])
async def test_a_search_without_a_load_that_meets_the_slo_exits_with_2(loop, tmp_path):
    span, points, text, code = await found(Queue(first=0.3), search(Promise(ttft=0.2), loop), tmp_path)
    assert (span.low, points, code) == (None, 1, 2)
    assert f"no {loop} that was measured, in 1 points, meets the objective" in text


async def test_the_answers_in_time_of_a_growing_backlog_do_not_count(tmp_path):
    """All answers of a minute at 1.5 times the capacity come within the SLO, but no longer minute's would."""
    queue = Queue()
    planner = search(Promise(ttft=60.0), start=1.5 * queue.capacity, points=1)
    recording = await measure([queue], planner, tmp_path, promise=planner.promise, goal=planner.goal)
    (verdict,) = verdicts_of(report.analyse(recording).views, planner.goal, planner.promise)
    assert (verdict.share, verdict.growing, verdict.outcome) == (1.0, True, "missed")
    assert verdict.served == pytest.approx(queue.capacity, rel=0.02)


async def test_the_result_can_be_read_again_from_the_files(tmp_path, call):
    _, _, text, _ = await found(Queue(), search(Promise(ttft=0.3), points=3), tmp_path)
    assert text.splitlines()[-1] in call(main, "table", str(tmp_path / "run.json")).stdout


async def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path):
    """A planner keeps no state, so what it chooses depends only on the points in the file."""
    whole = await measure([Queue()], search(Promise(ttft=0.3)), tmp_path, promise=Promise(ttft=0.3))
    rates = [point.rate for point in whole.run.points]
    part = await measure([Queue()], search(Promise(ttft=0.3), points=3), tmp_path, promise=Promise(ttft=0.3))
    assert [point.rate for point in part.run.points] == rates[:3]


def test_a_load_that_is_met_stands_above_one_that_was_too_close_to_call():
    """Regression: points below it that were not valid hid the load that met the SLO."""
    span = bracket([verdict(0.4, "unlikely"), verdict(3.3, "met"), verdict(26.0, "missed"), verdict(9.0, "unlikely")])
    assert (span.low.load, span.high.load, span.unclear) == (3.3, 26.0, [9.0])


@pytest.mark.parametrize(("factor", "outcome"), [(0.5, "met"), (2.0, "unlikely")])
async def test_a_late_generator_can_meet_the_slo_but_not_miss_it(factor, outcome, tmp_path):
    """Times count from the intended send, so lateness only makes them longer."""
    queue = Queue()
    planner = search(Promise(ttft=0.5), start=factor * queue.capacity, points=1)
    recording = await measure([queue], planner, tmp_path, promise=planner.promise, goal=planner.goal)
    for record in recording.records:
        record.dispatched = record.first_token - 0.01
    (verdict,) = verdicts_of(report.analyse(recording).views, planner.goal, planner.promise)
    assert verdict.outcome == outcome
    assert "late" in verdict.faults[0]


def verdict(load, outcome, points=1, **changes):
    fields = {"met": 99, "sent": 100, "low": 0.95, "high": 0.999, "growing": False, "margin": None, "served": None, "faults": ()}
    return Verdict(load=load, outcome=outcome, points=points, **{**fields, **changes})


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], 1.0),
        ([verdict(1.0, "met", margin=0.1)], 8.0),
        ([verdict(1.0, "met", margin=0.7)], 2.0),
        ([verdict(1.0, "met"), verdict(4.0, "missed")], 2.0),
        ([verdict(1.0, "met"), verdict(8.0, "missed"), verdict(4.0, "unlikely")], 2.0),
        ([verdict(1.0, "met"), verdict(1.02, "missed")], None),
        ([verdict(1.0, "missed")], 0.25),
        ([verdict(1.0, "missed"), verdict(0.05, "missed")], None),
        ([verdict(1.0, "missed", served=0.9)], 0.45),
        # The generator, and not the server, was the limit at 16.
        ([verdict(1.0, "met"), verdict(16.0, "unlikely", faults=("late",))], 4.0),
        ([verdict(16.0, "unlikely", faults=("late",))], 4.0),
        ([verdict(1.0, "met"), verdict(1.02, "unlikely", faults=("late",))], None),
    ],
)
def test_the_load_grows_until_it_fails_and_then_is_halved_in_logarithms(verdicts, expected):
    assert next_load(verdicts, 1.0, ERROR, whole=False) == (None if expected is None else pytest.approx(expected))


def test_the_served_rate_of_a_failed_point_is_the_next_load():
    verdicts = [verdict(1.0, "met", margin=0.1), verdict(2.0, "met", margin=0.1), verdict(16.0, "missed", served=10.0)]
    assert next_load(verdicts, 1.0, ERROR, whole=False) == pytest.approx(10.0, rel=ERROR)


def test_loads_that_meet_the_slo_below_the_predicted_limit_move_the_next_one_above_it():
    """Regression: the server met the SLO wherever the limit was predicted, and each load was 0.75 % above the one before."""
    measured = [(1.1, 0.32), (3.686, 0.49), (4.488, 0.67), (4.598, 0.69), (4.632, 0.7)]
    met = [verdict(load, "met", margin=margin) for load, margin in measured]
    verdicts = [met[0], verdict(8.781, "missed", served=4.96, margin=3.4), *met[1:]]
    assert next_load(verdicts, 1.0, ERROR, whole=False) > 4.96 * (1 + ERROR)


def test_a_load_that_is_too_close_to_call_is_measured_again_for_twice_as_long():
    planner = search(Promise(ttft=0.3))
    last = verdict(10.0, "unlikely")
    assert planner._continues(last, bracket([last]))
    assert not planner._continues(attrs.evolve(last, points=3), bracket([last]))
    # A regression: beyond the generator's limit, each point was twice as long as the one before, and none valid.
    assert not planner._continues(attrs.evolve(last, faults=("late",)), bracket([last]))
    first, second = (planner._task("t", 10.0, [], scout=False, repeat=repeat) for repeat in (0, 1))
    assert (first.seconds, second.seconds, second.repeat) == (60, 120, 1)


def test_misses_in_a_row_widen_the_interval():
    """Equal shares: misses that come together say less than scattered ones."""
    together = [True] * 900 + [False] * 100
    scattered = [number % 10 != 0 for number in range(1000)]
    assert bounds(scattered) == pytest.approx((0.883, 0.915), abs=0.002)
    assert bounds(together)[0] < 0.8


@pytest.mark.parametrize("attainment", [0.9, 0.99])
def test_the_needed_requests_show_the_share_if_none_misses(attainment):
    assert bounds([True] * needed(attainment))[0] >= attainment > bounds([True] * (needed(attainment) - 1))[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concurrency"], "--slo-ttft"),
        (["--attainment", "1"], "between 0 and 1"),
        (["--prompt-tokens", "8,16"], "--prompt-tokens"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, call):
    ended = call(main, "search", "--engine", "simulated", *arguments)
    assert (ended.returncode, words in ended.stderr.splitlines()[-1]) == (2, True)


def test_a_search_on_an_engine_writes_a_run(tmp_path, call):
    out = tmp_path / "run.json"
    command = ["search", "--engine", "simulated", "--no-ceiling", "--output-tokens", "4", "--prompt-tokens", "8", "--seconds", "1"]
    ended = call(main, *command, "--slo-ttft", "5", "--attainment", "0.5", "--points", "2", "--out", str(out))
    assert ended.returncode == 0
    assert "(TTFT of at most 5,000 ms for 0.5 of the requests) is met at" in ended.stdout


def test_the_sentence_says_of_each_unclear_load_why_it_is_unclear():
    """Regression: loads without a valid point were called too short, where another one was."""
    unclear = [verdict(4.0, "unlikely", low=0.7, high=0.95), verdict(5.0, "unlikely", faults=("late",)), verdict(6.0, "unlikely", low=0.6)]
    unclear += [verdict(7.0, "unlikely")]
    said = result.sentence(
        "m", [verdict(1.0, "met"), *unclear, verdict(9.0, "missed")], Goal(loop="rate", attainment=0.9, width=0.03), Promise(), 7
    )
    assert "At 4/s, 6/s and 7/s, the points are too short to tell (60.0% to 99.9% of the requests)." in said
    assert said.endswith("At 5/s, no point is valid, so the limit may be the generator's: late.")
