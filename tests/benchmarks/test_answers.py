"""The reader of an answer's stream: what is a token, what is an error, where the answer ends."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.analysis import summary
from benchmarks.recording.results import RequestRecord
from benchmarks.targets.answers import Answer, message_of, spread
from benchmarks.workload.requests import Item


def event(choice=None, **fields):
    choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def text(word=" word", **fields):
    return event({"text": word}, **fields)


def delta(**fields):
    return event({"delta": fields})


def usage(tokens):
    return {"usage": {"prompt_tokens": 8, "completion_tokens": tokens}}


ROLE = delta(role="assistant", content="")
STOP, LENGTH = event({"text": "", "finish_reason": "stop"}), event({"text": "", "finish_reason": "length"})
DONE = b"data: [DONE]\n\n"


def read(*timed, wanted=4, natural=False, count=None):
    """Return the record of an answer whose parts arrived at their times, in seconds."""
    record = RequestRecord(point=0, number=0, prompt_tokens=1, wanted_tokens=wanted, intended=0.0, dispatched=0.0)
    answer = Answer(record)
    for at, received in timed:
        if answer.feed(received, at):
            break
    answer.end(Item(prompt=(1,), max_tokens=wanted, natural=natural), timed[-1][0], count)
    answer.merge()
    record.finished = timed[-1][0]
    return record


def together(*parts, **options):
    return read((1.0, b"".join(parts)), **options)


TOOL = delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}])
BOTH = delta(reasoning="hm", reasoning_content="hm")
THINKING = delta(content=[{"type": "thinking", "thinking": "hm"}])
FOUR = event(**usage(4)) + DONE
# Name: (parts of the stream with their times, expected deliveries).
STREAMS = {
    "finish reason in its own chunk, then usage": (
        [(1, text()), (2, text()), (3, text()), (4, text() + STOP + FOUR)],
        [(1, 1), (2, 1), (3, 1), (4, 1)],
    ),
    "no usage": ([(1, text()), (2, text() * 3), (3, LENGTH), (4, DONE)], [(1, 1), (2, 3)]),
    "usage of 0": ([(1, text()), (2, text() + event(**usage(0)) + LENGTH + DONE)], [(1, 1), (2, 1)]),
    "role first": ([(1, ROLE), (2, delta(content="a b")), (3, delta(content=" c d")), (4, FOUR)], [(2, 2), (3, 2)]),
    "reasoning": (
        [(1, ROLE), (2, delta(reasoning_content="hm") * 2), (3, delta(content="so") * 2), (4, STOP)],
        [(2, 2), (3, 2)],
    ),
    "both names of reasoning": ([(1, ROLE), (2, BOTH), (3, delta(content="so")), (4, FOUR)], [(2, 2), (3, 2)]),
    "tool call": ([(1, ROLE), (2, TOOL), (3, FOUR)], [(2, 4)]),
    "content in parts": ([(1, THINKING), (2, FOUR)], [(1, 4)]),
    "continuous usage": ([(1, delta(content="", **usage(0))), (2, text(**usage(3))), (3, text(**usage(4)) + STOP)], [(2, 3), (3, 1)]),
    "token ids": (
        [(1, text("")), (2, event({"text": "", "token_ids": [7, 8]})), (3, event({"text": "x", "token_ids": [9, 9]}) + DONE)],
        [(2, 2), (3, 2)],
    ),
    "a token whose text is kept back, and the end of the sequence": (
        [(1, text("", **usage(1))), (2, text(**usage(3))), (3, event({"text": "", "finish_reason": "stop"}, **usage(4)))],
        [(1, 1), (2, 2), (3, 1)],
    ),
    "a late count, and a text after the last token": (
        [(1, text(**usage(0))), (2, text(**usage(2))), (3, text(**usage(4))), (4, text() + DONE)],
        [(1, 1), (2, 1), (3, 2), (4, 0)],
    ),
    "more chunks than tokens": (
        [*((at, text("x")) for at in (1, 2, 3, 4)), (5, event(**usage(2)) + DONE)],
        [(1, 1), (2, 0), (3, 1), (4, 0)],
    ),
}


@pytest.mark.parametrize(("stream", "deliveries"), STREAMS.values(), ids=STREAMS)
def test_tokens_are_counted_where_they_were_delivered(stream, deliveries):
    wanted = sum(tokens for _, tokens in deliveries)
    record = read(*stream, wanted=wanted)
    assert record.deliveries == deliveries
    assert (record.outcome, record.completion_tokens) == ("ok", wanted)
    assert summary.summarize([record]).e2e.at("p50") == deliveries[-1][0]


def test_tokens_that_arrive_together_are_one_delivery():
    """Regression: with four events in a segment, ITL was 0 and TPOT 16 ms instead of 20 and 20."""
    segments = [(0.1 + 0.08 * number, text() * 4) for number in range(4)]
    found = summary.summarize([read(*segments, (0.5, STOP + event(**usage(16)) + DONE), wanted=16)])
    assert (found.itl.at("p50"), found.tpot.at("p50")) == (pytest.approx(0.02), pytest.approx(0.02))


def test_tokens_that_the_server_counts_at_the_end_are_spread_over_their_chunks():
    """Regression: ITL and TPOT were 6.2 and 16 ms instead of 20 and 20."""
    chunks = [(0.1 + 0.08 * number, text(" word" * 4)) for number in range(8)]
    record = read(*chunks, (0.7, STOP + event(**usage(32)) + DONE), wanted=32)
    found = summary.summarize([record])
    assert [tokens for _, tokens in record.deliveries] == [4] * 8
    assert (found.itl.at("p50"), found.tpot.at("p50")) == (pytest.approx(0.02), pytest.approx(0.02))
    assert record.counted == "spread"
    assert "1 answers: the server counted the tokens of several chunks together" in found.remarks[0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_spread_tokens_sum_up_and_begin_with_the_first_piece(lengths, total):
    counts = spread(total, lengths)
    assert sum(counts) == total
    assert counts[0] >= 1
    assert min(counts) >= (1 if total >= len(lengths) else 0)


@pytest.mark.parametrize(
    ("stream", "options", "outcome", "tokens", "counted"),
    [
        ([text() * 4 + LENGTH], {}, "ok", 4, "server"),
        ([text() * 2, text(" word" * 2) + LENGTH + DONE], {}, "ok", 4, "spread"),
        ([text() * 3 + STOP], {}, "wrong_token_count", 3, "chunks"),
        ([text() * 3 + STOP + event(**usage(3)) + DONE], {}, "wrong_token_count", 3, "server"),
        ([text() * 3 + STOP + event(**usage(3)) + DONE], {"natural": True}, "ok", 3, "server"),
        ([text() * 3 + STOP], {"natural": True, "count": lambda text: len(text) // 5 * 2}, "ok", 6, "tokenizer"),
        ([STOP + event(**usage(0)) + DONE], {"natural": True}, "ok", 0, "server"),
        ([STOP + event(**usage(1)) + DONE], {"natural": True}, "ok", 1, "server"),
        ([DONE], {}, "wrong_token_count", 0, "server"),
        ([text() * 4], {}, "truncated", 4, "chunks"),
        ([text() * 3 + text()[:-9]], {}, "truncated", 3, "chunks"),
        ([], {}, "truncated", 0, "server"),
    ],
)
def test_an_answer_ends_with_a_finish_reason_or_done(stream, options, outcome, tokens, counted):
    record = together(*stream, **options)
    assert (record.outcome, record.completion_tokens, record.counted) == (outcome, tokens, counted)
    found = summary.summarize([record])
    assert found.outcomes == {outcome: 1}


OPENAI = b'{"error": {"message": "bad luck", "type": "server_error", "code": 500}}'
ERRORS = [
    OPENAI,
    b'{"error": "bad luck"}',
    b'{"object": "error", "message": "bad luck", "type": "BadRequestError", "param": null, "code": 400}',
    b'{"detail": "bad luck"}',
    b'{"error": null, "message": "bad luck"}',
    b'"bad luck"',
    b"bad luck",
]


@pytest.mark.parametrize("body", ERRORS)
def test_an_error_keeps_the_server_s_message(body):
    """Regression: some errors counted as truncated, or as events that could not be decoded."""
    middle = together(text(error=None) * 3, b"data: " + body + b"\n\n", DONE)
    assert (middle.outcome, middle.completion_tokens) == ("error", 3)
    assert middle.detail.endswith("bad luck")
    named = together(text(), b"event: error\ndata: " + body + b"\n\n")
    assert (named.outcome, named.detail) == ("error", "bad luck")
    alone = together(body)
    assert (alone.outcome, alone.detail) == ("error", "the answer is not a stream: bad luck")


def test_an_event_that_is_no_chunk_is_an_error_with_its_text():
    record = together(text(), b'data: {"choices": [{"text": 7}]}\n\n')
    assert record.outcome == "error"
    assert "Expected `str | null`" in record.detail
    assert '{"choices":[{"text":7}]}' in record.detail


def test_what_is_no_part_of_an_answer_is_left_out():
    """Comments, other fields, an event of several lines, Windows' line ends, and an unknown event."""
    noise = b': alive\r\n\r\nid: 7\r\nretry: 5\r\nevent: ping\r\ndata: {"type": "ping"}\r\n\r\n'
    several = b'data: {"choices":\ndata: [{"text": "x"}]}\n\n'
    assert together(noise, several * 4, noise, DONE).outcome == "ok"


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_parts_in_which_a_stream_arrives_make_no_difference(first, second):
    stream = text(" 語") + b": alive\r\n\r\n" + text(" 語 語") + STOP + event(**usage(3)) + DONE
    first, second = sorted((first, second))
    record = read((1.0, stream[:first]), (1.0, stream[first:second]), (1.0, stream[second:]), wanted=3)
    assert (record.outcome, record.deliveries) == ("ok", [(1.0, 3)])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no\\nluck"}}', "no luck"),
        (b'{"error": {"code": 7}}', '{"code":7}'),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc":["body"]}]'),
        (b"<html>\xff" + b"x" * 1000, "<html>�" + "x" * 293),
    ],
)
def test_a_message_is_one_short_line(body, message):
    assert message_of(body) == message
