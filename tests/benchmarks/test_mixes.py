"""Adapters, think times and recorded conversations: what the server's log says was sent."""

import itertools
import random
import statistics
from collections import Counter

import attrs
import pytest
from benchmarks_support import Scripted, generate, sent

from benchmarks.__main__ import main
from benchmarks.analysis.report import analyse
from benchmarks.analysis.steady_state import steady_window
from benchmarks.analysis.summary import by_adapter
from benchmarks.analysis.table import adapter_rows
from benchmarks.recording.results import Point, Recording, Run
from benchmarks.targets import TargetError
from benchmarks.targets.http import HTTP
from benchmarks.targets.server import find_model, open_session, parse_server
from benchmarks.truth.behaviours import TOKENS, Behaviour
from benchmarks.truth.script import MODEL
from benchmarks.truth.server import serve
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Fixed, Workload
from benchmarks.workload.think_time import ThinkTime, parse_think_time
from benchmarks.workload.traces import Arrival, LaterTurn, read_trace

FAST = Behaviour(name="fast", does="", first=0.005, gap=0.0)
PLAIN = Workload(prompt=Fixed(4), output=Fixed(TOKENS), vocabulary=(1, 200))
SESSIONS = """{"timestamp": 0, "session_id": "a", "input_length": 3, "output_length": 16}
{"timestamp": 10, "input_length": 5, "output_length": 16}
{"session_id": "a", "delay": 40, "input_length": 2, "output_length": 16}
{"session_id": "a", "delay": 20, "input_length": 1, "output_length": 16}
{"timestamp": 20, "session_id": "a", "input_length": 7, "output_length": 16}
"""


async def measured(load, workload, **job):
    """Return the log of a scripted server, and the records, by request id."""
    async with serve(FAST) as (url, scripted):
        server = parse_server(url)
        async with open_session(server) as session:
            generator = generate(HTTP(session, server, MODEL), load, workload, **job)
            await generator.run()
    return scripted.log, sorted(generator.measured.records, key=lambda record: int(record.request_id))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_each_request_names_its_adapter_and_has_its_figures():
    workload = attrs.evolve(PLAIN, adapters=(("a", 0.5), ("b", 0.3)))
    log, records = await measured(Load(concurrency=4), workload, requests=60)
    assert [entry.model for entry in log] == [record.adapter or MODEL for record in records]
    sent = Counter(entry.model for entry in log)
    found = by_adapter(records)
    assert {name or MODEL: (each.requests, each.answered, each.ttft.count) for name, each in found.items()} == {
        name: (count, count, count) for name, count in sent.items()
    }
    assert set(sent) == {"a", "b", MODEL}


def test_adapters_have_their_shares_and_change_nothing_else():
    plain, mixed = (
        list(itertools.islice(attrs.evolve(PLAIN, adapters=adapters).items(), 4000)) for adapters in ((), (("a", 0.5), ("b", 0.3)))
    )
    assert {item.adapter for item in plain} == {""}
    counts = Counter(item.adapter for item in mixed)
    assert [counts[name] / 4000 for name in ("a", "b", "")] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert [item.prompt for item in plain] == [item.prompt for item in mixed]
    everything = attrs.evolve(PLAIN, adapters=(("a", 0.7), ("b", 0.3)))
    assert {item.adapter for item in itertools.islice(everything.items(), 1000)} == {"a", "b"}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_thinks_between_its_turns():
    think = ThinkTime("exact", 0.05)
    log, records = await measured(Load(concurrency=1), attrs.evolve(PLAIN, turns=Fixed(3), think=think), requests=2)
    assert [entry.prompt for entry in log] == [4, 24, 44] * 2
    assert [record.think for record in records] == [0.0, 0.05, 0.05] * 2
    for before, after in itertools.pairwise(log):
        if after.prompt > 4:
            # A clock of the event loop may be a moment early, and is never late in the log's favour.
            assert after.arrived - before.pieces[-1][0] > 0.049


async def test_a_turn_is_due_when_the_client_has_thought():
    """The time counts as that of a client that has a request, so it does not cut the window."""
    workload = attrs.evolve(PLAIN, turns=Fixed(4), think=ThinkTime("exact", 2.0))
    generator = generate(Scripted(gaps=(0.5, 0.5)), Load(concurrency=3), workload, requests=3)
    await generator.run()
    records = sorted(generator.measured.records, key=lambda record: record.intended)
    assert [record.intended for record in records] == pytest.approx([0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9])
    assert [record.dispatched for record in records] == pytest.approx([record.intended for record in records])
    assert steady_window(records) == pytest.approx((0.0, 10.0))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_recorded_conversation_is_sent_with_its_own_pauses(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(SESSIONS)
    trace = read_trace(path)
    assert trace == [
        Arrival(0.0, 3, 16, later=(LaterTurn(0.04, 2, 16), LaterTurn(0.02, 1, 16))),
        Arrival(0.01, 5, 16),
        Arrival(0.02, 7, 16),
    ]
    assert read_trace(path, speed=2)[0].later[0].think == pytest.approx(0.02)
    log, records = await measured(Load(pattern="trace", trace=tuple(trace)), PLAIN)
    # The whole conversation is sent again: the prompts and the answers so far.
    assert sorted(entry.prompt for entry in log) == [3, 5, 7, 3 + 16 + 2, 3 + 16 + 2 + 16 + 1]
    turns = {entry.prompt: entry for entry in log}
    for before, after, think in ((3, 21, 0.04), (21, 38, 0.02)):
        assert turns[after].arrived - turns[before].pieces[-1][0] > think - 0.001
    assert sorted(record.think for record in records) == [0.0, 0.0, 0.0, 0.02, 0.04]


@pytest.mark.parametrize(
    ("text", "median", "shown"),
    [
        ("2", 2.0, "2 s"),
        ("exponential:2", 1.386, "exponential:2 s"),
        ("normal:2:0.5", 2.0, "normal:2:0.5 s"),
        ("lognormal:2:0.6", 2.0, "lognormal:2:0.6 s"),
    ],
)
def test_think_times_have_their_distribution(text, median, shown):
    found, rng = parse_think_time(text), random.Random(1)
    drawn = [found.draw(rng) for _ in range(4001)]
    assert statistics.median(drawn) == pytest.approx(median, rel=0.05)
    assert min(drawn) >= 0
    assert str(found) == shown


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "normal:2", "exponential:2:3", "gamma:1:2", "normal:2:-1", "exponential:0"])
def test_an_invalid_think_time_is_refused(text):
    with pytest.raises(ValueError, match="write seconds above 0"):
        parse_think_time(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--think-time", "2"], "--think-time: it is the time between the turns of --turns"),
        (["--think-time", "no"], "--think-time: 'no': write seconds"),
        (["--adapters", "a"], "'a': write NAME:SHARE,..."),
        (["--adapters", "a:0.5,a:0.2"], "with different names"),
        (["--adapters", "a:0"], "shares above 0"),
        (["--adapters", "a:0.7,b:0.4"], "the shares add up to more than 1"),
    ],
)
def test_an_invalid_mix_is_refused_in_one_line(arguments, words, call):
    found = call(main, "run", "--concurrency", "1", *arguments)
    assert found.returncode == 2
    assert words in found.stderr.splitlines()[-1]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_adapter_that_the_server_does_not_have_is_named():
    async with serve(FAST) as (url, _):
        with pytest.raises(TargetError, match=f"does not serve 'mine'; its models: {MODEL}"):
            await find_model(parse_server(url), None, ["mine"])
        assert (await find_model(parse_server(url), None, [MODEL]))[1] == MODEL


def test_the_table_has_a_row_for_each_adapter():
    names = ["", "a", "a", "b"]
    records = [sent(number, float(number), number + 0.5) for number in range(4)]
    for record, name in zip(records, names, strict=True):
        record.adapter = name
    point = Point(number=0, target="t", concurrency=1, planned=4, seconds=4.0, complete=True)
    run = Run(command="c", started="now", provenance={"model": "base"}, workload={}, points=[point])
    rows = adapter_rows(analyse(Recording(run, records)))
    assert [row[:5] for row in rows] == [
        ["t", "concurrency 1", name, count, count] for name, count in (("base", "1"), ("a", "2"), ("b", "1"))
    ]
    assert [row[5] for row in rows] == ["500.0"] * 3
    run.points[0].number = 1
    for record in records:
        record.point, record.adapter = 1, ""
    assert adapter_rows(analyse(Recording(run, records))) == []
