"""The conversion of vLLM's outputs, without vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
from contracts.engine_contract import CollectingSink

from llmserve import EngineDead, EngineError, InvalidRequest, Overloaded, Sampling, Unavailable
from llmserve.engines.vllm import engine as engine_module
from llmserve.engines.vllm.engine import VLLMEngine
from llmserve.engines.vllm.outputs import Receiver, translate


def output(reason, text="", token_ids=()):
    part = SimpleNamespace(finish_reason=reason, text=text, token_ids=token_ids, stop_reason=None, logprobs=None)
    return SimpleNamespace(outputs=[part], metrics=None, num_cached_tokens=0)


# The class hierarchy of vLLM 0.32 and 0.33.
CLASSES = {
    "VLLMError": Exception,
    "VLLMClientError": "VLLMError",
    "VLLMServerError": "VLLMError",
    "VLLMValidationError": "VLLMClientError",
    "VLLMNotFoundError": "VLLMClientError",
    "VLLMUnprocessableEntityError": "VLLMClientError",
    "ChatTemplateResolutionError": "VLLMClientError",
    "EngineDeadError": "VLLMServerError",
    "EngineGenerateError": "VLLMServerError",
    "GenerationError": "VLLMServerError",
    "RetryableRequestError": "GenerationError",
    "GracefulHTTPError": "VLLMError",
    "QueueOverflowError": "GracefulHTTPError",
    "MaxQueuedTokensError": "GracefulHTTPError",
}


def vllm_error(name, message="why"):
    def made(name):
        base: Any = CLASSES[name]
        return type(name, (made(base) if isinstance(base, str) else base,), {})

    return made(name)(message)


@pytest.fixture
def given():
    """A receiver of the request "r", its sink, the open requests and the dropped ones."""
    sink, still_open, dropped = CollectingSink(), {"r"}, []
    return Receiver("r", sink, Sampling(), still_open, str, dropped.append), sink, still_open, dropped


def test_a_request_that_vllm_aborts_is_dropped_silently(given):
    receiver, sink, still_open, dropped = given
    receiver.put(output(None, "a", (1,)))
    receiver.put(output("abort"))
    # The engine may be dying, which would be another error.
    assert (dropped, still_open, sink.error, len(sink.deltas)) == ([sink], set(), None, 1)


def test_an_aborted_request_has_no_further_output(given):
    receiver, sink, still_open, dropped = given
    still_open.discard("r")
    receiver.put(output("abort"))
    assert (dropped, sink.error, sink.deltas) == ([], None, [])


def test_a_failure_in_the_engine_is_an_error(given):
    receiver, sink, _, dropped = given
    receiver.put(output("error"))
    assert isinstance(sink.error, EngineError)
    assert not dropped


def test_a_dropped_request_fails_if_its_engine_lives_on(monkeypatch):
    now = 100.0
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: now))
    engine, first, second = VLLMEngine("bundled"), CollectingSink(), CollectingSink()
    engine._drop(first)
    now += engine_module.END_SECONDS
    engine._drop(second)
    engine._fail_dropped()
    assert first.error is None
    now += 1
    engine._fail_dropped()
    assert "abort" in str(first.error)
    assert second.error is None


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("VLLMClientError", InvalidRequest, None),
        ("VLLMValidationError", InvalidRequest, None),
        ("VLLMNotFoundError", InvalidRequest, None),
        ("VLLMUnprocessableEntityError", InvalidRequest, None),
        ("ChatTemplateResolutionError", InvalidRequest, None),
        ("EngineDeadError", EngineDead, None),
        ("EngineGenerateError", EngineError, None),
        ("GenerationError", EngineError, None),
        ("RetryableRequestError", Unavailable, "paused"),
        ("QueueOverflowError", Overloaded, "queue_full"),
        ("MaxQueuedTokensError", Overloaded, "queue_full"),
    ],
)
def test_each_of_vllm_s_errors_is_one_of_ours(name, kind, reason):
    error = translate(vllm_error(name))
    assert type(error) is kind
    assert getattr(error, "reason", None) == reason
    assert name == "EngineDeadError" or "why" in str(error)


def test_a_paused_engine_s_refusal_is_the_request_s_end(given):
    receiver, sink, still_open, _ = given
    receiver.put(vllm_error("RetryableRequestError"))
    assert isinstance(sink.error, Unavailable)
    assert not still_open
