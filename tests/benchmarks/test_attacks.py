"""The attack table: its inputs, rows run against a server, and verdicts."""

import asyncio
import json
import math
import os
import time
from typing import Any

import psutil
import pytest
from http_support import running_server

from benchmarks.__main__ import main
from benchmarks.robustness.attacks import inputs
from benchmarks.robustness.attacks.attackers import AttackCounts, Post, SlowReader, Unfinished, answer
from benchmarks.robustness.attacks.play import Options, Target, play, skipped
from benchmarks.robustness.attacks.rows import MAX_CHATS, MIB, ROWS, Bounds, Row, choose
from benchmarks.robustness.attacks.verdict import Figures, Played, broken, figures
from benchmarks.robustness.canary import Canary
from frontends.http.request_checks import MAX_BODY
from frontends.rawsocket.frames import MAX_FRAME, FrameReader, FromClient
from llmserve.request import MAX_LOGPROB_ENTRIES

pytestmark = pytest.mark.anyio
QUICK = Options(attackers=2, seconds=0.5, rise=1000.0)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize(
    ("body", "find", "item", "least"),
    [
        (inputs.tools(), lambda found: found["tools"][0]["function"]["parameters"]["a"], {}, 1_300_000),
        (inputs.schema(), lambda found: found["structured_outputs"]["json"]["a"], {}, 1_300_000),
        (inputs.metadata(), lambda found: found["metadata"]["a"], [], 1_390_000),
        (inputs.ids(), lambda found: found["tokens"], 1, 2_000_000),
    ],
)
def test_a_large_body_is_as_large_as_the_server_takes_and_full_of_small_values(body, find, item, least):
    assert MAX_BODY - 3 <= len(body) <= MAX_BODY
    found = find(json.loads(body))
    assert len(found) >= least
    assert found[0] == found[-1] == item


def test_the_other_bodies_are_what_the_table_says():
    held = json.loads(inputs.held())
    assert held["stream"]
    assert held["ignore_eos"]
    assert len(inputs.held()) <= 0.97 * MIB < len(inputs.held()) + 100
    assert json.loads(inputs.ordinary(1000)) == {"prompt": "hi", "max_tokens": 8}
    assert len(inputs.ordinary(1000)) == 1000
    many = json.loads(inputs.many_logprobs())
    assert (many["n"], many["max_tokens"], many["logprobs"]) == (128, 2000, 20)
    chat = json.loads(inputs.chat_logprobs())
    assert (chat["n"], chat["max_tokens"], chat["top_logprobs"], chat["logprobs"]) == (16, 2000, 20, True)
    for name, constraint in inputs.CONSTRAINTS.items():
        assert json.loads(inputs.constrained(name))["structured_outputs"] == constraint
    assert len(inputs.CONSTRAINTS["schema"]["json"]["$defs"]) == 20


def test_requests_without_their_end_lack_only_their_end():
    head, _, body = inputs.partial_body().partition(b"\r\n\r\n")
    assert f"Content-Length: {MAX_BODY}".encode() in head
    assert len(body) == MAX_BODY - 1
    reader = FrameReader(FromClient, MAX_FRAME)
    reader.feed(inputs.partial_frame())
    assert reader.next() is not None, "the Hello is whole"
    assert reader.next() is None


def test_rows_are_chosen_by_number():
    assert {row.number for row in ROWS} == {"1", "1b", "2", "3", "4", "5", "9", "10"}
    assert len(choose(["1", "1b"])) == len(inputs.CONSTRAINTS)
    assert len(choose(["2"])) == 4
    assert choose([]) == ROWS
    with pytest.raises(ValueError, match="unknown row '7'; choose from 1, 2, 3, 4, 5, 9, 10, 1b"):
        choose(["7"])


def test_rows_that_cannot_be_played_say_why():
    constrained, *_, bodies = ROWS
    assert "--engine vllm" in skipped(constrained, Options())
    assert skipped(constrained, Options(engine="vllm")) is None
    assert skipped(constrained, Options(url="http://x")) is None
    assert skipped(bodies, Options(url="http://x")) is None
    for number in ("5", "10"):
        assert "started by this command" in skipped(choose([number])[0], Options(url="http://x"))


async def test_a_row_is_played_against_a_server():
    row = Row(number="0", name="a missing field", attack=Post("/v1/completions", b"{}"), bounds=Bounds(grown=2**40))
    async with running_server() as server:
        target = Target("127.0.0.1", int(server.url.rpartition(":")[2]), psutil.Process(os.getpid()))
        found = await play(row, target, QUICK)
    assert found.broken == []
    assert found.answers.keys() == {"400"}
    assert found.answers["400"] >= QUICK.attackers
    for phase in (found.before, found.control, found.beside, found.after):
        assert phase.failures == 0
        assert 0 < phase.p50 <= phase.worst < math.inf
        assert phase.lag > 0
    assert found.resident_most >= found.resident_before * 0.9
    assert "attackers got" in str(found)
    assert str(found).endswith("holds")


async def test_a_server_that_does_not_answer_breaks_a_row():
    async def busy(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(busy, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        target = Target(host, port, None)
        found = await play(Row(number="0", name="x", attack=Post("/", b"{}")), target, QUICK)
    assert any("canary" in words for words in found.broken)
    assert found.resident_after is None
    assert "resident ? MiB" in str(found)


@pytest.mark.parametrize(
    ("attack", "says", "counted"),
    [
        (SlowReader("/", b"{}", 1e9), b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", "whole"),
        (SlowReader("/", b"{}", 1e9), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd", "cut off"),
        (SlowReader("/", b"{}", 1e9), b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "400"),
        (SlowReader("/", b"{}", 1e9), b"", "cut off"),
        (Unfinished(b"x"), b"", "ended by the server"),
        (Post("/", b"{}"), b"HTTP/1.1 413 Too Large\r\n\r\n", "413"),
        (Post("/", b"{}"), b"", "connection lost"),
    ],
)
async def test_an_attacker_counts_what_the_server_answers(attack, says, counted):
    async def say(reader, writer):
        await reader.read(1000)
        writer.write(says)
        writer.close()

    tally = AttackCounts()
    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        # Wait until a moment after the first answer: an attacker that posts repeatedly then stops.
        await attack.attack(*server.sockets[0].getsockname()[:2], time.perf_counter() + 0.01, tally)
    assert tally.answers.keys() == {counted}


async def test_a_server_that_is_gone_is_a_lost_connection():
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
    assert await answer(host, port, b"x") == "connection lost"


def test_a_phase_has_the_requests_that_were_open_in_it():
    canary = Canary("x", 0, samples=[(0.0, 1.0), (1.0, 3.0), (5.0, 1.0)], failed=[(3.0, 5.0)], probes=[(0.0, 0.5), (4.0, 0.25)])
    assert figures(canary, 0.0, 2.0, within=True) == Figures(p50=1.0, worst=1.0, failures=0, lag=0.5)
    assert figures(canary, 2.0, 4.5) == Figures(p50=3.0, worst=3.0, failures=1, lag=0.25)
    assert math.isnan(figures(canary, 20.0, 30.0).worst)


QUIET = Figures(p50=0.04, worst=0.05, failures=0, lag=0.001)


def played(**changes):
    usual: dict[str, Any] = {
        "before": QUIET,
        "beside": QUIET,
        "after": QUIET,
        "resident_before": 50 * MIB,
        "resident_most": 60 * MIB,
        "resident_after": 60 * MIB,
    }
    return Played(number="0", name="x", **(usual | changes))


def figure(**changes):
    return Figures(**({"p50": 0.04, "worst": 0.05, "failures": 0, "lag": 0.001} | changes))


@pytest.mark.parametrize(
    ("changes", "bounds", "words"),
    [
        ({}, Bounds(), None),
        ({"beside": figure(worst=0.14)}, Bounds(), None),
        ({"beside": figure(worst=0.16)}, Bounds(), "rose by 110 ms"),
        ({"beside": figure(worst=0.16)}, Bounds(rise=None), None),
        ({"beside": figure(worst=0.16), "control": figure(worst=0.1)}, Bounds(), None),
        ({"beside": figure(worst=0.11)}, Bounds(rise=None, times=2.0), "2.2 times that before"),
        ({"beside": figure(failures=2)}, Bounds(), "2 of the canary's requests failed"),
        ({"after": figure(failures=1)}, Bounds(), "1 of the canary's requests failed"),
        ({"beside": figure(worst=math.nan)}, Bounds(), "the canary received no answer"),
        ({"resident_after": 115 * MIB}, Bounds(), "+65 MiB afterwards"),
        ({"resident_most": 115 * MIB}, Bounds(), None),
        ({"resident_most": 115 * MIB}, Bounds(held=64 * MIB), "+65 MiB during the attack"),
        ({"resident_before": None, "resident_most": None, "resident_after": None}, Bounds(held=1), None),
        ({"longest": 7.0}, Bounds(answered=6.0), "after 7.0 s"),
        ({"answers": {"cut off": 3, "200": 1}}, Bounds(), "3 attackers: cut off"),
    ],
)
def test_a_verdict_names_the_bound_that_is_broken(changes, bounds, words):
    row = Row(number="0", name="x", attack=Post("/", b"{}"), wrong=frozenset({"cut off"}), bounds=bounds)
    found = broken(played(**changes), row, 0.1)
    if words is None:
        assert found == []
    else:
        assert len(found) == 1
        assert words in found[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rows", "1,1b"], 0, "skipped, the row needs a real engine"),
        (["--rows", "7"], 2, "unknown row '7'"),
        (["--rows", "2", "--url", "ftp://x"], 2, "write http://HOST:PORT"),
    ],
)
def test_the_command_says_what_it_does_not_play(arguments, code, words, call):
    found = call(main, "attacks", *arguments)
    assert found.returncode == code, found.stderr
    assert words in (found.stdout + found.stderr)


def test_the_largest_answer_that_may_be_asked_for_is_played():
    assert MAX_CHATS * 2000 * 21 <= MAX_LOGPROB_ENTRIES < (MAX_CHATS + 1) * 2000 * 21
