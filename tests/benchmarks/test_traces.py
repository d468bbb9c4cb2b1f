"""Recorded traffic in its publishers' columns."""

from typing import Any

import pytest

from benchmarks.workload.traces import Arrival, UnreadableFile, read_trace

MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 2353]}
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,374,44
2023-11-16 18:17:04.0319600,396,109
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,Conversation log
"""


def about(seconds: float) -> Any:
    return pytest.approx(seconds)


@pytest.mark.parametrize(
    ("name", "text", "arrivals"),
    [
        ("a.jsonl", MOONCAKE, [Arrival(0.0, 6955, 52, (46, 47)), Arrival(about(3.053), 6472, 26, (46, 2353))]),
        ("a.csv", AZURE, [Arrival(0.0, 374, 44), Arrival(about(0.052), 396, 109)]),
        ("a.csv", BURSTGPT, [Arrival(0.0, 472, 18), Arrival(113.0, 417, 276)]),
    ],
    ids=["Mooncake", "Azure", "BurstGPT"],
)
def test_each_publisher_s_columns_are_read(tmp_path, name, text, arrivals):
    path = tmp_path / name
    path.write_text(text)
    assert read_trace(path) == arrivals


def test_a_trace_is_sent_faster_and_cut(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(BURSTGPT)
    assert read_trace(path, speed=10)[1].time == pytest.approx(11.3)
    assert len(read_trace(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no requests"),
        ('{"when": 3}', "request 1: unknown format"),
        ('{"timestamp": 1, "input_length": "many", "output_length": 1}', "request 1"),
        ("not json", "request 1"),
    ],
)
def test_an_invalid_trace_is_named(tmp_path, text, words):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(UnreadableFile, match=words) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
