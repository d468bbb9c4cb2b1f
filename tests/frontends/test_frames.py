"""The raw-socket codec: the golden bytes of docs/protocol.md, and any message in any chunks."""

import pathlib
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.openai.errors import describe
from frontends.rawsocket import frames
from frontends.rawsocket.errors import to_exception, to_frame
from frontends.rawsocket.frames import FrameError, FrameReader
from llmserve import Delta, Overloaded, PromptTooLong, State, TenantOverloaded, TokenLogprob, Unavailable, Usage
from llmserve.state import unavailable

PROTOCOL = pathlib.Path(__file__).parents[2] / "docs" / "protocol.md"
LOGPROB = TokenLogprob(5, "a", -0.5)

# The messages whose bytes docs/protocol.md shows, by their names there.
GOLDEN = {
    "Hello": frames.Hello(1),
    "Hello with a key": frames.Hello(1, "secret"),
    "Open": frames.Open(1, 256, frames.raw({"prompt": "Hi", "max_tokens": 2})),
    "Credit": frames.Credit(1, 128),
    "Cancel": frames.Cancel(1, "bored"),
    "Ping": frames.Ping(7),
    "Welcome": frames.Welcome(1, "bundled", 4 * 2**20, 1024),
    "Started": frames.Started(1, "abc", 3),
    "Deltas": frames.Deltas([(1, " Paris", (7042,)), (2, "é", (1, 2))]),
    "Detail": frames.Detail(1, Delta("a", (5,), logprobs=[LOGPROB])),
    "End": frames.End(1, "length", None, Usage(3, 2, 0)),
    "Error": frames.Error(1, "Overloaded", "full", {"retry_after": 1.5, "reason": "queue_full"}),
    "Pong": frames.Pong(7),
}
FROM_CLIENT = (frames.Hello, frames.Open, frames.Credit, frames.Cancel, frames.Ping)


def golden_bytes():
    """Read the page's table `| name | bytes in hexadecimal |`."""
    rows = re.findall(r"^\| ([A-Z][\w ]+) \| `([0-9a-f ]+)` \|$", PROTOCOL.read_text(), re.MULTILINE)
    return {name: bytes.fromhex(digits) for name, digits in rows}


def kind_of(message):
    return frames.FromClient if isinstance(message, FROM_CLIENT) else frames.FromServer


def read_all(reader):
    found = []
    while (message := reader.next()) is not None:
        found.append(message)
    return found


def comparable(message):
    """Compare a Raw as bytes, because it is a view of its source."""
    fields = msgspec.structs.astuple(message)
    return type(message), [bytes(field) if isinstance(field, msgspec.Raw) else field for field in fields]


def test_the_page_shows_every_message():
    assert golden_bytes().keys() == GOLDEN.keys()
    assert {type(message) for message in GOLDEN.values()} == {*frames.FromClient.__args__, *frames.FromServer.__args__}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_has_the_bytes_that_the_page_shows(name):
    assert frames.encode(GOLDEN[name]) == golden_bytes()[name]


def test_an_open_without_a_trace_is_accepted():
    body = bytes.fromhex("94 01 01 cd 01 00 82 a6 70 72 6f 6d 70 74 a2 48 69 aa 6d 61 78 5f 74 6f 6b 65 6e 73 02")
    reader = FrameReader(frames.FromClient, frames.MAX_FRAME)
    reader.feed(len(body).to_bytes(4, "big") + body)
    assert reader.next() == GOLDEN["Open"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_decode_the_same_for_any_split(name):
    data = golden_bytes()[name]
    for at in range(len(data) + 1):
        reader = FrameReader(kind_of(GOLDEN[name]), frames.MAX_FRAME)
        reader.feed(data[:at])
        early = read_all(reader)
        assert not early or at == len(data)
        reader.feed(data[at:])
        (message,) = early or read_all(reader)
        assert comparable(message) == comparable(GOLDEN[name])


texts = st.text(max_size=20)
ids = st.integers(1, 2**32 - 1)
amounts = st.integers(1, 2**31 - 1)
counts = st.integers(0, 2**32)
details = st.dictionaries(texts, st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts, max_size=3)
pieces = st.tuples(ids, texts, st.lists(counts, max_size=4).map(tuple))
logprobs = st.builds(TokenLogprob, counts, texts, st.none() | st.floats(max_value=0, allow_nan=False), st.just(()) | st.just((LOGPROB,)))
deltas = st.builds(Delta, texts, st.lists(counts, max_size=3).map(tuple), logprobs=st.none() | st.lists(logprobs, max_size=3))
client_messages = st.one_of(
    st.builds(frames.Hello, counts, st.none() | texts),
    st.builds(frames.Open, ids, amounts, st.dictionaries(texts, st.none() | counts | texts, max_size=3).map(frames.raw)),
    st.builds(frames.Credit, ids, amounts),
    st.builds(frames.Cancel, ids, texts),
    st.builds(frames.Ping, st.integers(0, 2**63 - 1)),
)
server_messages = st.one_of(
    st.builds(frames.Welcome, counts, texts, counts, counts),
    st.builds(frames.Started, ids, texts, counts),
    st.builds(frames.Deltas, st.lists(pieces, max_size=4)),
    st.builds(frames.Detail, ids, deltas),
    st.builds(frames.End, ids, texts, st.none() | texts | counts, st.builds(Usage, counts, counts, counts)),
    st.builds(frames.Error, ids, texts, texts, details),
    st.builds(frames.Pong, counts),
)
conversations = st.tuples(st.just(frames.FromClient), st.lists(client_messages, max_size=8)) | st.tuples(
    st.just(frames.FromServer), st.lists(server_messages, max_size=8)
)


@given(conversations, st.data())
def test_any_messages_under_any_chunking_come_out_as_they_went_in(conversation, data):
    kind, messages = conversation
    wire = frames.encode(*messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    reader, found = FrameReader(kind, frames.MAX_FRAME), []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        reader.feed(wire[start:end])
        found += read_all(reader)
    assert [comparable(message) for message in found] == [comparable(message) for message in messages]


@given(st.binary(max_size=64))
def test_bytes_that_are_not_frames_raise_an_error_or_wait_for_more(data):
    reader = FrameReader(frames.FromClient, 64)
    reader.feed(data)
    try:
        read_all(reader)
    except FrameError as error:
        assert str(error)


WRONG = {
    "longer than allowed": bytes.fromhex("00000041") + bytes(65),
    "an unknown type": bytes.fromhex("00000002 91 63"),
    "no array": bytes.fromhex("00000001 07"),
    "not MessagePack": bytes.fromhex("00000001 c1"),
    "a field too few": bytes.fromhex("00000002 92 01"),
    "an id of nought": bytes.fromhex("00000004 93 02 00 01"),
    "more than one message": bytes.fromhex("00000004 92 04 07 07"),
    "no body": bytes(4),
    "text that is no UTF-8": bytes.fromhex("00000005 93 03 01 a1 ff"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_frame_is_an_error(name):
    reader = FrameReader(frames.FromClient, 64)
    reader.feed(WRONG[name])
    with pytest.raises(FrameError):
        reader.next()


def test_elements_that_a_later_version_adds_are_passed_over():
    reader = FrameReader(frames.FromClient, 64)
    reader.feed(bytes.fromhex("00000004 93 04 07 c3"))
    assert reader.next() == frames.Ping(7)


def test_a_frame_that_is_too_long_is_refused_before_its_body_comes():
    reader = FrameReader(frames.FromClient, 64)
    reader.feed(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError, match="4294967295 bytes; at most 64"):
        reader.next()


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after=1.5, reason="queue_full"),
        TenantOverloaded("yours", retry_after=0.5, reason="tenant_limit"),
        PromptTooLong(99, 50),
    ],
)
def test_an_error_keeps_its_class_and_attributes(error):
    again = to_exception(to_frame(7, error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_of_a_newer_server_is_still_one_of_ours():
    error = to_exception(frames.Error(1, "SomethingNew", "words", {"unheard": 1}))
    assert type(error).__name__ == "EngineError"
    assert str(error) == "words"


@pytest.mark.parametrize(("state", "message"), [(State.NEW, "the engine is starting"), (State.STOPPED, "the server has stopped")])
def test_clients_of_a_server_get_no_advice_for_the_program_that_embeds_the_manager(state, message):
    error = unavailable(state)
    assert "EngineManager" in str(error) or "await manager.start()" in str(error)
    _, body, _ = describe(error)
    frame = to_frame(1, error)
    assert body.error.message == frame.message == message
    assert type(to_exception(frame)) is Unavailable
