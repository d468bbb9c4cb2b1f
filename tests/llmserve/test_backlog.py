from hypothesis import given
from hypothesis import strategies as st

from llmserve import Delta, TokenLogprob
from llmserve.lifecycle.delta_buffer import JOINED, DeltaBuffer

logprobs = st.none() | st.lists(st.builds(TokenLogprob, st.integers(0, 9), st.text(max_size=2), st.just(-1.0)), max_size=3).map(tuple)
deltas = st.builds(
    Delta,
    st.text(max_size=3),
    st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
    st.none() | st.just("stop"),
    st.none() | st.text(max_size=2),
    logprobs,
    st.none() | st.just((TokenLogprob(1, "p", None),)),
)


@given(st.lists(deltas, min_size=1, max_size=2 * JOINED + 2))
def test_nothing_is_lost_and_it_ends_as_the_last_one_did(parts):
    backlog = DeltaBuffer(parts[0])
    for part in parts[1:]:
        backlog.add(part)
    whole = backlog.whole()
    assert whole.text == "".join(part.text for part in parts)
    assert whole.token_ids == tuple(token for part in parts for token in part.token_ids)
    assert (whole.finish_reason, whole.stop_reason) == (parts[-1].finish_reason, parts[-1].stop_reason)
    some = [part.logprobs for part in parts if part.logprobs is not None]
    assert whole.logprobs == (tuple(entry for entries in some for entry in entries) if some else None)
    assert whole.prompt_logprobs == next((part.prompt_logprobs for part in parts if part.prompt_logprobs), None)


def test_its_memory_grows_with_the_answer_and_not_with_its_pieces():
    backlog = DeltaBuffer(Delta("a", (1,)))
    for _ in range(10_000):
        backlog.add(Delta("a", (1,)))
    assert len(backlog._texts) < JOINED
    assert len(backlog._joined) == 10_001 // JOINED
    assert backlog._token_ids.itemsize * len(backlog._token_ids) == 8 * 10_001
