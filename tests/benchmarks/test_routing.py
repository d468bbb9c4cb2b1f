"""Routing between engines in virtual time: the cache of blocks, the traces' prompts, the contenders."""

import json
import math
import random
from collections import Counter

import pytest

from benchmarks.__main__ import main
from benchmarks.overload import cost, routing
from benchmarks.overload.engine import EngineSize, Sequence, StepEngine
from benchmarks.overload.laws import H200_1_5B
from benchmarks.studies.routing import pools_table
from benchmarks.workload.traces import Arrival
from llmserve.admission.pool.prefixes import STEP


def engine_of(kv_tokens):
    return StepEngine(EngineSize(max_num_seqs=4, max_num_batched_tokens=1000, kv_tokens=kv_tokens), H200_1_5B, 1)


def complete(engine, *sequences):
    """Run sequences to their end; return how many tokens the engine computed for each."""
    for sequence in sequences:
        engine.submit(sequence)
    while engine.busy:
        engine.start()
        engine.finish()
    return [sequence.computed for sequence in sequences]


def blocks(*keys):
    return tuple((key, 100) for key in keys)


def test_an_engine_computes_what_its_cache_lacks_from_the_first_missing_block_on():
    engine = engine_of(10_000)
    assert complete(engine, Sequence(None, 350, 2, blocks(1, 2, 3))) == [350]
    assert [engine.cached(keys) for keys in ((1, 2, 3), (1, 9, 3), (2, 3))] == [300, 100, 200]
    assert complete(engine, Sequence(None, 350, 2, blocks(1, 9, 3))) == [250]
    # The engine computes the last token of a prompt that the cache has as a whole.
    assert complete(engine, Sequence(None, 300, 2, blocks(1, 2, 3))) == [1]
    assert engine.cached_tokens == 100 + 299
    assert engine._held == 0


def test_a_full_cache_forgets_the_blocks_that_were_used_longest_ago_and_the_ends_first():
    engine = engine_of(700)
    for keys in ((1, 2), (3, 4), (1, 2)):
        complete(engine, Sequence(None, 220, 2, blocks(*keys)))
    complete(engine, Sequence(None, 320, 2, blocks(5, 6, 7)))
    assert [engine.cached(keys) for keys in ((5, 6, 7), (1, 2), (3, 4))] == [300, 200, 100]


def test_sequences_that_run_together_share_their_blocks():
    engine = engine_of(600)
    computed = complete(engine, Sequence(None, 310, 30, blocks(1, 2, 3)), Sequence(None, 310, 30, blocks(1, 2, 3)))
    assert computed == [310, 10]
    assert engine.preemptions == 0


def test_prompts_of_a_trace_share_keys_as_far_as_their_blocks():
    trace = [Arrival(0.0, 1100, 5, (7, 8, 9)), Arrival(0.0, 1400, 5, (7, 8, 10)), Arrival(3.0, 600, 5, (11, 8)), Arrival(9.0, 10, 5, (12,))]
    found = {request.number: request for request in routing.of_trace(trace, 1)}
    assert found[0].blocks == ((7, 512), (8, 512), (9, 64))
    assert found[3].blocks == ()
    assert len(set(found[0].prefix) & set(found[1].prefix)) == 1024 // STEP
    assert not set(found[0].prefix) & set(found[2].prefix)
    # The requests of one time are spread up to the next.
    assert 0 < found[0].due < 3
    assert found[0].due != found[1].due
    assert 3 <= found[2].due < found[3].due == 9


def conversations(count, seed=1):
    """Return conversations of some turns, each with its past and 1,000 more tokens, as a trace."""
    rng = random.Random(seed)
    past, trace, key = {}, [], 0
    for number in range(count):
        conversation = rng.randrange(40)
        ids = past.get(conversation, ())
        if len(ids) > 20:
            ids = ()
        past[conversation] = ids = (*ids, key, key + 1)
        key += 2
        trace.append(Arrival(float(number), 512 * len(ids), 60, ids))
    return trace


@pytest.fixture(scope="module")
def talk():
    requests = routing.of_trace(conversations(800), 1)
    rate = 0.8 * routing.capacity(requests, 4)
    return {name: routing.play(requests, name, 4, rate) for name in routing.CONTENDERS}


def test_a_conversation_stays_where_its_past_is(talk):
    figures = {name: played.figures() for name, played in talk.items()}
    ours, wait_only = figures["llmserve"], figures["wait only"]
    assert ours["hits"] > 0.9 * figures["oracle"]["hits"] > 1.4 * wait_only["hits"]
    assert ours["ttft_p50"] < 0.5 * wait_only["ttft_p50"]
    assert ours["balance"] < 1.5
    assert all(request.finished is not None for played in talk.values() for request in played.requests)


def test_the_other_contenders_ignore_the_past(talk):
    turns = [request.engine for request in talk["round robin"].requests]
    assert turns == [number % 4 for number in range(len(turns))]
    counts = Counter(request.engine for request in talk["least load"].requests)
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_without_anything_shared_knowledge_of_prefixes_changes_nothing():
    requests = routing.unshared(600, 1)
    rate = 0.8 * routing.capacity(requests, 3)
    ours, wait_only = (routing.play(requests, name, 3, rate).figures() for name in ("llmserve", "wait only"))
    assert ours == wait_only
    assert ours["hits"] == 0


def test_tenants_get_their_shares_of_all_engines():
    found = routing.shares(engines=6, streams=300, requests=2500)
    assert found == pytest.approx(dict.fromkeys(routing.DEMANDS, 1.0), rel=0.05)


def test_lategate_on_several_engines_refuses_under_overload_and_meets_the_slo():
    requests = routing.unshared(2000, 1)
    rate = 2 * routing.capacity(requests, 2)
    played = routing.play(requests, "llmserve", 2, rate, policy="lategate")
    admitted = [request for request in played.requests if request.first is not None]
    assert 0.2 < len(admitted) / len(requests) < 0.95
    assert played.figures()["met"] * len(requests) > 0.97 * len(admitted)


def test_the_cost_of_an_arrival_is_measured_in_turns(monkeypatch):
    monkeypatch.setattr(cost, "ARRIVALS", 20)
    rows = cost.pools(engines=(1, 3), rounds=2)
    assert [(row["policy"], row["load"]) for row in rows] == [
        (name, load) for name in ("fixed", "lategate") for load in ("light", "full queue")
    ]
    assert all(set(row["micros"]) == {1, 3} and row["growth"] > 0 for row in rows)
    lines = pools_table(rows).splitlines()
    assert lines[0] == "| policy | load | 1 engine | 3 engines | growth |"
    assert cost.keys(500) > 0


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("policy", ["fixed", "lategate"])
def test_the_load_of_that_measurement_is_steady(policy, full):
    pool = cost.Pool.under_load(policy, 3, full=full)
    before = pool.controller.statistics(pool.now)
    pool.serve(pool.tickets(50))
    after = pool.controller.statistics(pool.now)
    assert before.running + before.waiting == after.running + after.waiting
    assert (after.waiting > 100) == full
    assert not after.refused


def test_the_command_compares_the_routers_on_each_trace(tmp_path, capsys):
    trace, out = tmp_path / "talk.jsonl", tmp_path / "found.json"
    rows = [
        {"timestamp": arrival.time * 1000, "input_length": arrival.prompt, "output_length": arrival.output, "hash_ids": arrival.blocks}
        for arrival in conversations(40)
    ]
    trace.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit) as ended:
        main(["routing", str(trace), "--engines", "2", "--load", "0.7", "--requests", "30", "--out", str(out)])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(routing.CONTENDERS)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    found = json.loads(out.read_text())["rows"]
    assert {row["workload"] for row in found} == {"talk", "nothing shared"}
    assert all(math.isfinite(row["goodput"]) for row in found)


def test_a_trace_without_blocks_is_named(tmp_path, capsys):
    trace = tmp_path / "azure.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n")
    with pytest.raises(SystemExit) as ended:
        main(["routing", str(trace)])
    assert ended.value.code == 2
    assert f"{trace}: the trace has no ids of blocks" in capsys.readouterr().err
