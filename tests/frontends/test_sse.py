import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from frontends.openai import sse
from frontends.openai.chat import ChatResponseBuilder
from frontends.openai.completions import TextResponseBuilder
from frontends.openai.response_builder import add_usage
from llmserve import Delta, Usage

text = st.text() | st.text(alphabet='\n\r"\\\u2028\x00data: []{}🙂é', max_size=20)


def parse(stream):
    """Parse events like a browser's EventSource.

    Events end with an empty line, and have lines that begin with `data:`.
    """
    for block in stream.decode().split("\n\n")[:-1]:
        lines = block.split("\n")
        assert all(line.startswith("data: ") for line in lines)
        yield "\n".join(line.removeprefix("data: ") for line in lines)


@given(text)
@example("\x00text\x00")
@example("data: [DONE]\n\n")
def test_any_text_survives_the_template(value):
    frame = sse.TextEvent(lambda text: {"a": "before", "text": text, "b": "after"})
    (payload,) = parse(frame(value))
    assert msgspec.json.decode(payload) == {"a": "before", "text": value, "b": "after"}


@given(st.lists(text, max_size=5))
def test_a_template_writes_the_same_as_encoding_the_whole_chunk(texts):
    for kind in (TextResponseBuilder, ChatResponseBuilder):
        answerer = kind("id", "model")
        for value in texts:
            delta = Delta(value, (1,))
            whole = sse.event(answerer._answer(answerer.chunk_choice(3, delta)))
            # Tokens without text are not shown yet.
            assert answerer.chunk(3, delta) == (whole if value else b"")


@given(st.lists(st.tuples(text, st.integers(1, 10**6)), max_size=5), st.integers(0, 10**6), st.sampled_from([0, 7]))
def test_so_does_a_template_that_counts(pieces, prompt, cached):
    for kind in (TextResponseBuilder, ChatResponseBuilder):
        answerer = kind("id", "model")
        for value, tokens in pieces:
            delta, usage = Delta(value, (1,)), Usage(prompt, tokens, cached)
            whole = answerer._answer(answerer.chunk_choice(3, delta))
            whole.usage = add_usage([usage], 1)
            assert answerer.chunk(3, delta, usage) == (sse.event(whole) if value else b"")


@given(st.lists(text, max_size=5))
def test_a_stream_of_events_comes_apart_as_it_was_put_together(texts):
    answerer = ChatResponseBuilder("id", "model")
    stream = b"".join(answerer.chunk(0, Delta(value, (1,))) for value in texts) + sse.DONE
    *chunks, done = parse(stream)
    assert done == "[DONE]"
    assert [msgspec.json.decode(chunk)["choices"][0]["delta"]["content"] for chunk in chunks] == [value for value in texts if value]
