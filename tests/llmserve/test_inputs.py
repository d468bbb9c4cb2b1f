"""The inputs of `stream()` and `generate()`, which are the same for both."""

from typing import Any

import attrs
import pytest

from llmserve import CancellationToken, EngineManager, GenerationRequest, InvalidRequest, RequestCancelled, Sampling
from llmserve.validation.inputs import RequestFields, SamplingFields

MESSAGES = [{"role": "user", "content": "hello"}]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def manager():
    async with EngineManager.open(engine="simulated") as manager:
        yield manager


async def streamed(manager, *arguments, **fields):
    async with manager.stream(*arguments, **fields) as stream:
        return await stream.collect()


def tokens(completion):
    return completion.usage.completion_tokens


def test_every_field_is_a_keyword():
    request = attrs.fields_dict(GenerationRequest).keys() - {"prompt", "messages", "sampling"}
    assert SamplingFields.__annotations__.keys() == attrs.fields_dict(Sampling).keys()
    assert RequestFields.__annotations__.keys() == request | attrs.fields_dict(Sampling).keys()


@pytest.mark.parametrize("ask", [EngineManager.generate, streamed])
@pytest.mark.parametrize(
    ("given", "prompt", "messages"),
    [
        ("hello", "hello", None),
        ([1, 2, 3], (1, 2, 3), None),
        (range(1, 3), (1, 2), None),
        (MESSAGES, None, tuple(MESSAGES)),
        (tuple(MESSAGES), None, tuple(MESSAGES)),
        (GenerationRequest("x"), "x", None),
    ],
)
async def test_all_inputs(manager, ask, given, prompt, messages):
    request = GenerationRequest.of(given)
    assert (request.prompt, request.messages) == (prompt, messages)
    assert tokens(await ask(manager, given, max_tokens=3, ignore_eos=True)) == 3


@pytest.mark.parametrize("ask", [EngineManager.generate, streamed])
async def test_a_sampling_and_a_token_by_position_and_by_keyword(manager, ask):
    sampling, token = Sampling(max_tokens=3, ignore_eos=True), CancellationToken()
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((sampling,), {}),
        ((), {"sampling": sampling}),
        ((sampling, token), {}),
        ((token, sampling), {}),
        ((token,), {"sampling": sampling}),
        ((sampling,), {"token": token}),
        ((None, token), {"sampling": sampling}),
    ]
    for options, keywords in cases:
        assert tokens(await ask(manager, MESSAGES, *options, **keywords)) == 3
    token.cancel("enough")
    for options, keywords in [((token,), {}), ((sampling, token), {}), ((token, sampling), {}), ((sampling,), {"token": token})]:
        with pytest.raises(RequestCancelled):
            await ask(manager, "hello", *options, **keywords)


async def test_keywords_replace_single_values():
    sampling = Sampling(max_tokens=3, temperature=0.5, seed=1)
    given = GenerationRequest("x", sampling=sampling, tenant="a", deadline=3)
    made = GenerationRequest.of(given, max_tokens=5, deadline=9, priority=-1)
    assert made == attrs.evolve(given, sampling=attrs.evolve(sampling, max_tokens=5), deadline=9, priority=-1)
    assert GenerationRequest.of("x", sampling, max_tokens=5, request_id="r") == GenerationRequest(
        "x", sampling=attrs.evolve(sampling, max_tokens=5), request_id="r"
    )
    assert GenerationRequest.of(given) is given


@pytest.mark.parametrize("ask", [EngineManager.generate, streamed])
async def test_a_wrong_argument_is_named_and_not_counted(manager, ask):
    sampling, token = Sampling(), CancellationToken()
    before = manager.metrics()
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        (("x", sampling, sampling), {}, TypeError, "a Sampling was given twice"),
        (("x", token), {"token": token}, TypeError, "a CancellationToken was given twice"),
        (("x", sampling), {"sampling": sampling}, TypeError, "a Sampling was given twice"),
        (("x", 5), {}, TypeError, "a Sampling or a CancellationToken, not int"),
        (("x", None, None, None), {}, TypeError, "4 arguments"),
        (("x",), {"max_token": 5}, TypeError, "unknown field 'max_token'; the fields are max_tokens,"),
        (({"role": "user", "content": "x"},), {}, TypeError, "a sequence of messages .* not dict"),
        (([*MESSAGES, "x"],), {}, TypeError, "messages must be a sequence of mappings, not str"),
        ((["x"],), {}, TypeError, "a sequence of token ids.* not a sequence of str"),
        ((b"x",), {}, TypeError, "request must be text.* not bytes"),
        (([],), {}, InvalidRequest, "prompt is empty"),
        (("x",), {"max_tokens": 0}, InvalidRequest, "max_tokens"),
        (("x",), {"stop": 5}, TypeError, "stop must be"),
        (("x", Sampling(min_tokens=8)), {"max_tokens": 4}, InvalidRequest, "min_tokens"),
    ]
    for arguments, fields, error, words in cases:
        with pytest.raises(error, match=words):
            await ask(manager, *arguments, **fields)
    assert manager.metrics() == before
