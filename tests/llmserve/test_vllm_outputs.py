"""What becomes of vLLM's outputs, without vLLM."""

from types import SimpleNamespace

import pytest
from contracts.engine_contract import CollectingSink

from llmserve import EngineError, Sampling
from llmserve.engines import vllm
from llmserve.engines.vllm import VLLMEngine
from llmserve.engines.vllm_outputs import Receiver


def output(reason, text="", token_ids=()):
    part = SimpleNamespace(finish_reason=reason, text=text, token_ids=token_ids, stop_reason=None, logprobs=None)
    return SimpleNamespace(outputs=[part], metrics=None, num_cached_tokens=0)


@pytest.fixture
def given():
    """A receiver of the request "r", its sink, what is open, and what was dropped."""
    sink, still_open, dropped = CollectingSink(), {"r"}, []
    return Receiver("r", sink, Sampling(), still_open, str, dropped.append), sink, still_open, dropped


def test_what_vllm_aborts_of_itself_is_dropped_without_a_word(given):
    receiver, sink, still_open, dropped = given
    receiver.put(output(None, "a", (1,)))
    receiver.put(output("abort"))
    # Its engine's death may be on its way, which is another thing to tell.
    assert (dropped, still_open, sink.error, len(sink.deltas)) == ([sink], set(), None, 1)


def test_what_its_reader_has_aborted_is_nobody_s(given):
    receiver, sink, still_open, dropped = given
    still_open.discard("r")
    receiver.put(output("abort"))
    assert (dropped, sink.error, sink.deltas) == ([], None, [])


def test_what_fails_in_the_engine_says_so(given):
    receiver, sink, _, dropped = given
    receiver.put(output("error"))
    assert isinstance(sink.error, EngineError)
    assert not dropped


def test_what_was_dropped_by_an_engine_that_lives_on_fails(monkeypatch):
    now = 100.0
    monkeypatch.setattr(vllm, "time", SimpleNamespace(monotonic=lambda: now))
    engine, first, second = VLLMEngine("bundled"), CollectingSink(), CollectingSink()
    engine._drop(first)
    now += vllm.END_SECONDS
    engine._drop(second)
    engine._fail_dropped()
    assert first.error is None
    now += 1
    engine._fail_dropped()
    assert "abort" in str(first.error)
    assert second.error is None
