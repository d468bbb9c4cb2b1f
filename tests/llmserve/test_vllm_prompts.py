"""Waiting prompts are encoded together, and a bad one does not fail others."""

import asyncio
import threading

import attrs
import pytest

from llmserve import EngineDead
from llmserve.engines.vllm.pooling.outputs import second_text
from llmserve.engines.vllm.prompts import MAX_CHARACTERS, Encoded, PromptEncoder, PromptJob


@pytest.fixture
def anyio_backend():
    return "asyncio"


@attrs.define
class Params:
    kwargs: dict = attrs.field(factory=lambda: {"add_special_tokens": True})

    def get_encode_kwargs(self):
        return self.kwargs

    def apply_pre_tokenization(self, tokenizer, prompt):
        if not prompt["prompt"]:
            raise ValueError("no text")
        return {"prompt": prompt["prompt"].strip()}


@attrs.define
class Renderer:
    """Its tokenizer counts a text's characters, refuses the text "bad", and waits for `go`."""

    calls: list = attrs.field(factory=list)
    go: threading.Event = attrs.field(factory=threading.Event)
    tells_apart: bool = True

    def tokenizer(self, texts, pairs=None, **kwargs):
        self.calls.append((list(texts), kwargs))
        self.go.wait(10)
        if "bad" in texts:
            raise TypeError("bad text")
        if pairs is None:
            return {"input_ids": [[len(text)] for text in texts]}
        both = list(zip(texts, pairs, strict=True))
        kinds = {"token_type_ids": [[0] * len(text) + [1] * len(pair) for text, pair in both]} if self.tells_apart else {}
        return {"input_ids": [[len(text), len(pair)] for text, pair in both], **kinds}


@pytest.fixture
def renderer():
    return Renderer()


@pytest.fixture
def encoder(renderer):
    made = PromptEncoder(renderer)
    yield made
    renderer.go.set()
    made.close()


async def begin(encoder, *jobs):
    tasks = [asyncio.ensure_future(encoder.encode(job)) for job in jobs]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def text(words, **kwargs):
    return PromptJob(words, Params(**kwargs))


async def test_those_that_arrive_together_or_during_a_batch_go_together(encoder, renderer):
    first = await begin(encoder, text("a"), text(" bb "))
    second = await begin(encoder, text("ccc"), text("dddd"))
    renderer.go.set()
    assert await asyncio.gather(*first, *second) == [Encoded([1], "a"), Encoded([2], "bb"), Encoded([3], "ccc"), Encoded([4], "dddd")]
    assert [texts for texts, _ in renderer.calls] == [["a", "bb"], ["ccc", "dddd"]]


async def test_each_kind_of_text_goes_with_its_own(encoder, renderer):
    renderer.go.set()
    chat = {"add_special_tokens": False}
    jobs = [text("a"), text("> x", kwargs=chat), text("bb"), text("> yy", kwargs=chat)]
    assert await asyncio.gather(*await begin(encoder, *jobs)) == [
        Encoded([1], "a"),
        Encoded([3], "> x"),
        Encoded([2], "bb"),
        Encoded([4], "> yy"),
    ]
    calls = [(texts, kwargs["add_special_tokens"]) for texts, kwargs in renderer.calls]
    assert calls == [(["a", "bb"], True), (["> x", "> yy"], False)]


async def test_a_wrong_prompt_fails_alone(encoder, renderer):
    renderer.go.set()
    jobs = [text("a"), text("bad"), text(""), text("bb")]
    results = await asyncio.gather(*await begin(encoder, *jobs), return_exceptions=True)
    assert results[0] == Encoded([1], "a")
    assert results[3] == Encoded([2], "bb")
    assert [repr(result) for result in results[1:3]] == ["TypeError('bad text')", "ValueError('no text')"]


async def test_an_abandoned_prompt_is_not_encoded_and_delays_no_other(encoder, renderer):
    (running,) = await begin(encoder, text("a"))
    left, stays = await begin(encoder, text("bb"), text("ccc"))
    left.cancel()
    running.cancel()
    renderer.go.set()
    assert await stays == Encoded([3], "ccc")
    assert [texts for texts, _ in renderer.calls] == [["a"], ["ccc"]]


async def test_a_long_prompt_closes_its_batch(encoder, renderer):
    renderer.go.set()
    long = "x" * MAX_CHARACTERS
    tasks = await begin(encoder, text("a"), text(long), text("bb"))
    assert [one.token_ids for one in await asyncio.gather(*tasks)] == [[1], [MAX_CHARACTERS], [2]]
    assert [len(texts) for texts, _ in renderer.calls] == [2, 1]


async def test_an_engine_s_end_is_an_error_for_those_that_wait(encoder, renderer):
    (running,) = await begin(encoder, text("a"))
    (waiting,) = await begin(encoder, text("bb"))
    encoder.close()
    renderer.go.set()
    assert await running == Encoded([1], "a")
    for late in (waiting, encoder.encode(text("ccc"))):
        with pytest.raises(EngineDead):
            await asyncio.wait_for(late, 10)


@pytest.mark.parametrize(("tells_apart", "seconds"), [(True, [1, 2, 3]), (False, [None] * 3)])
async def test_pairs_go_together_and_know_where_the_second_text_begins(encoder, renderer, tells_apart, seconds):
    renderer.tells_apart = tells_apart
    renderer.go.set()
    jobs = [PromptJob("a", Params(), "xyz"), text("ccc"), PromptJob("bb", Params(), "yz"), PromptJob("ccc", Params(), "")]
    first, plain, second, third = await asyncio.gather(*await begin(encoder, *jobs))
    assert plain == Encoded([3], "ccc")
    assert [one.token_ids for one in (first, second, third)] == [[1, 3], [2, 2], [3, 0]]
    assert [one.second for one in (first, second, third)] == seconds
    assert [texts for texts, _ in renderer.calls] == [["a", "bb", "ccc"], ["ccc"]]


async def test_a_bad_pair_does_not_fail_the_others(encoder, renderer):
    renderer.go.set()
    jobs = [PromptJob(words, Params(), "x") for words in ("a", "bad", "bb")]
    found = await asyncio.gather(*await begin(encoder, *jobs), return_exceptions=True)
    assert [one.token_ids if isinstance(one, Encoded) else repr(one) for one in found] == [[1, 1], "TypeError('bad text')", [2, 1]]


@pytest.mark.parametrize(("version", "expected"), [("0.25.1", 4), ("0.32.0", 4), ("0.33.0+cpu", (4, 9)), ("1.0", (4, 9))])
def test_each_version_of_vllm_gets_the_place_of_a_pair_s_second_text_in_its_form(version, expected):
    assert second_text(4, 9, version) == expected
