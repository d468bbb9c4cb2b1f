"""Allowed tokens and bad words: the bounds of the fields, and the engines' part."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmserve import EngineManager, GenerationRequest, InvalidRequest, Sampling
from llmserve.engines.simulated.text import FIRST_WORD, VOCAB_SIZE
from llmserve.engines.vllm import params

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", [True]),
        ("allowed_token_ids", range(1025)),
        # With min_tokens and the model's own end tokens, 128 of these ended vLLM's model runner for
        # GPUs.
        ("stop_token_ids", range(65)),
        ("bad_words", [""]),
        ("bad_words", ["a" * 257]),
        ("bad_words", [str(number) for number in range(33)]),
        ("bad_words", [1]),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=field) as caught:
        Sampling(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("field", ["allowed_token_ids", "bad_words"])
def test_one_string_is_not_a_list(field):
    with pytest.raises(TypeError, match=field):
        Sampling(**dict[str, Any]({field: "word"}))


@pytest.mark.parametrize("field", ["allowed_token_ids", "bad_words"])
def test_a_vllm_that_would_change_other_answers_refuses_the_field(field):
    sampling = Sampling(**dict[str, Any]({field: [1] if field == "allowed_token_ids" else ["x"]}))
    for version in ("0.30.0", "0.32.0", "0.33.0+cpu"):
        params.check_version_for(sampling, version)
    params.check_version_for(Sampling(), "0.25.1")
    with pytest.raises(InvalidRequest, match="changes other requests' answers") as caught:
        params.check_version_for(sampling, "0.29.1")
    assert caught.value.param == field


def test_bad_words_of_too_many_tokens_do_not_reach_the_engine():
    """Some characters become dozens of tokens. vLLM counts them only in its engine, which ends."""
    vllm_params = SimpleNamespace(bad_words_token_ids=[])
    vllm_params.update_from_tokenizer = vllm_params.bad_words_token_ids.append
    params._check_bad_words(vllm_params, [0] * 1024)
    with pytest.raises(InvalidRequest, match="2,049 tokens"):
        params._check_bad_words(vllm_params, [0] * 1025)


async def test_tokens_out_of_vocabulary_are_named():
    async with EngineManager.open(engine="simulated") as manager:
        for prompt, sampling, field in (
            ("hi", Sampling(allowed_token_ids=[VOCAB_SIZE]), "allowed_token_ids"),
            ("hi", Sampling(logit_bias={VOCAB_SIZE: 1}), "logit_bias"),
            ([VOCAB_SIZE], Sampling(), "prompt"),
        ):
            with pytest.raises(InvalidRequest, match=f"{VOCAB_SIZE}, which is out of vocabulary") as caught:
                await manager.generate(prompt, sampling=sampling)
            assert caught.value.param == field


async def test_an_answer_without_the_end_token_has_the_length_that_was_asked_for():
    async with EngineManager.open(engine="simulated") as manager:
        answer = await manager.generate("hi", sampling=Sampling(allowed_token_ids=[FIRST_WORD, FIRST_WORD + 1], max_tokens=100))
    assert answer.finish_reason == "length"
    assert set(answer.token_ids) == {FIRST_WORD, FIRST_WORD + 1}


async def test_the_prompt_s_token_ids_come_with_the_answer_on_request():
    async with EngineManager.open(engine="simulated") as manager:
        asked = await manager.generate(GenerationRequest("hi", return_prompt_ids=True, sampling=Sampling(max_tokens=1)))
        assert asked.prompt_token_ids == tuple(b"hi")
        async with manager.stream(GenerationRequest("hi", return_prompt_ids=True)) as stream:
            assert stream.prompt_token_ids == tuple(b"hi")
        async with manager.stream(GenerationRequest("hi")) as stream:
            assert stream.prompt_token_ids is None
