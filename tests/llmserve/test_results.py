"""Results as dictionaries, and the partial answer of an error."""

import json
import math

import pytest

from llmserve import (
    CancellationToken,
    Completion,
    DeadlineExceeded,
    Delta,
    EngineDead,
    EngineManager,
    EngineRestarted,
    Message,
    Overloaded,
    RequestCancelled,
    Timeline,
    TokenLogprob,
    TokenStream,
    ToolCall,
    Unavailable,
    Usage,
)
from llmserve.lifecycle.logprobs import BLOCK, PackedLogprobs

pytestmark = pytest.mark.anyio

ENTRY = TokenLogprob(1, "a", -0.5, (TokenLogprob(1, "a", -0.5), TokenLogprob(2, "b", -math.inf)))
PLAIN = {
    "token_id": 1,
    "token": "a",
    "logprob": -0.5,
    "top": [{"token_id": 1, "token": "a", "logprob": -0.5, "top": []}, {"token_id": 2, "token": "b", "logprob": -9999.0, "top": []}],
}


def as_json(result):
    return json.loads(json.dumps(result.to_dict(), allow_nan=False))


@pytest.mark.parametrize("logprobs", [[ENTRY] * (BLOCK + 1), PackedLogprobs([ENTRY] * (BLOCK + 1))])
def test_logprobs_are_lists_of_dictionaries(logprobs):
    message = Message("hi", "", (ToolCall(0, "id", "f", "{}"),))
    completion = Completion("r", "hi", (1, 2), "stop", Usage(3, 2), logprobs=logprobs, message=message)
    assert as_json(completion) == {
        "request_id": "r",
        "text": "hi",
        "token_ids": [1, 2],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 0},
        "stop_reason": None,
        "logprobs": [PLAIN] * (BLOCK + 1),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "message": {"content": "hi", "reasoning": "", "tool_calls": [{"index": 0, "id": "id", "name": "f", "arguments": "{}"}]},
    }
    assert as_json(Delta("", (), logprobs=logprobs))["logprobs"] == [PLAIN] * (BLOCK + 1)
    assert as_json(TokenLogprob(2, "b", -math.inf))["logprob"] == -9999.0


@pytest.fixture
async def manager():
    async with EngineManager.open(engine="simulated") as manager:
        yield manager


async def test_a_timeline_is_a_dictionary(manager):
    async with manager.stream("hello", max_tokens=3, ignore_eos=True, tenant="web") as stream:
        await stream.collect()
    fields = as_json(stream.timeline)
    assert (fields["outcome"], fields["tenant"], fields["completion_tokens"]) == ("completed", "web", 3)


async def collect(manager, **fields):
    async with manager.stream("hello", max_tokens=1000, ignore_eos=True, **fields) as stream:
        await stream.collect()


async def generate(manager, **fields):
    await manager.generate("hello", max_tokens=1000, ignore_eos=True, **fields)


@pytest.mark.parametrize("ask", [collect, generate])
@pytest.mark.parametrize("end", ["token", "deadline", "stop"])
async def test_an_error_has_the_output_so_far(manager, ask, end):
    token = CancellationToken()

    class AtTen:
        def tokens(self, timeline, count, now):
            if timeline.completion_tokens + count == 10 and end != "deadline":
                token.cancel("enough") if end == "token" else manager.cancel_all("stopping")

        def finished(self, timeline):
            pass

    manager._open_requests.observer = AtTen()
    with pytest.raises({"token": RequestCancelled, "deadline": DeadlineExceeded, "stop": Unavailable}[end]) as caught:
        await ask(manager, token=token, deadline=0.2 if end == "deadline" else None)
    partial = caught.value.partial  # type: ignore[attr-defined]  # all three kinds have it
    assert partial.finish_reason == "abort"
    assert partial.usage.prompt_tokens > 0
    assert 5 < len(partial.token_ids) == partial.usage.completion_tokens < 1000
    assert partial.text
    json.dumps(partial.to_dict())


async def test_an_error_before_the_first_token_has_none(manager):
    token = CancellationToken()
    token.cancel("at once")
    with pytest.raises(RequestCancelled) as caught:
        await generate(manager, token=token)
    assert caught.value.partial is None
    assert EngineRestarted("x").partial is None
    assert Overloaded("x", retry_after=1, reason="x").partial is None


async def test_answers_that_one_death_ends_keep_their_own_output(manager):
    death = EngineDead("it died", stalled=True)
    errors = []
    for text in ("one", "two"):
        stream = TokenStream(Timeline(), lambda: 0.0, manager.recorder, on_end=lambda: None)
        stream.put(Delta(text, (1,)))
        stream.fail(death)
        with pytest.raises(EngineDead, match="it died") as caught:
            await stream.collect()
        errors.append(caught.value)
    assert [error.partial.text for error in errors] == ["one", "two"]
    assert death.partial is None
    assert all(error.stalled and error.__cause__ is death for error in errors)
