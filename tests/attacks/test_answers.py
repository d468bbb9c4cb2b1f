"""Small requests for large answers: logprobs are bounded, written in pieces and freed."""

import gc
import weakref
from contextlib import suppress

import msgspec
import pytest
from attacks.canary import check_error
from http_support import running_server

from frontends.http import responses
from frontends.net.turns import WorkQueue
from frontends.openai import logprobs
from frontends.openai.bodies import Answer
from frontends.openai.chat import ChatResponseBuilder
from frontends.openai.completions import TextResponseBuilder
from frontends.openai.logprobs import chat_logprobs, ranked_logprobs, text_logprobs
from frontends.openai.response_builder import add_usage
from llmserve import Completion, EngineManager, GenerationRequest, InvalidRequest, PromptTooLong, Sampling, TokenLogprob, Usage
from llmserve.request import MAX_LOGPROB_ENTRIES

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def entry(number):
    top = tuple(TokenLogprob(number + place, f'"{number + place}é', -1.0 - place) for place in range(3))
    return TokenLogprob(number, f'"{number}é', -0.5, top)


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 50])
@pytest.mark.parametrize("echo", [False, True])
async def test_pieces_make_the_same_answer_as_the_whole(monkeypatch, tokens, echo):
    monkeypatch.setattr(logprobs, "PIECE", 8)
    entries, prompt = tuple(map(entry, range(tokens))), (TokenLogprob(1, "hi", None), *map(entry, range(11)))
    completion = Completion("x", "text", tuple(range(tokens)), "length", Usage(3, tokens), logprobs=entries, prompt_logprobs=prompt)
    chat, text = ChatResponseBuilder("x", "m"), TextResponseBuilder("x", "m", (lambda _: "hi there") if echo else None)
    for answerer, expected in (
        (chat, chat_logprobs(entries)),
        (text, text_logprobs([*prompt, *entries] if echo else entries, 0)),
    ):
        parts = [part async for part in answerer.whole([completion, completion], 2, WorkQueue())]
        written = msgspec.json.decode(b"".join(parts))
        choices = [answerer.choice(index, completion) for index in range(2)]
        for choice in choices:
            choice.logprobs = expected
        whole = Answer(answerer.id, answerer.kind, answerer.created, "m", choices, add_usage([completion.usage] * 2, 2))
        if answerer is chat:
            whole.prompt_token_ids = whole.prompt_logprobs = None
        assert written == msgspec.json.decode(msgspec.json.encode(whole))
        answerer.prompt_logprobs = True
        written = msgspec.json.decode(b"".join([part async for part in answerer.whole([completion, completion], 2, WorkQueue())]))
        scored = msgspec.json.decode(msgspec.json.encode(ranked_logprobs(prompt)))
        assert [place["prompt_logprobs"] for place in ([written] if answerer is chat else written["choices"])] == [scored] * (
            1 if answerer is chat else 2
        )


async def test_one_answers_logprobs_are_bounded():
    async with EngineManager.open(
        engine="simulated", engine_args={"max_model_len": 2**17, "num_blocks": 2**14, "block_size": 16}
    ) as manager:
        most = MAX_LOGPROB_ENTRIES // 21
        with pytest.raises(InvalidRequest, match="at most 12,483") as caught:
            await manager.generate("hi", sampling=Sampling(max_tokens=most + 1, logprobs=20))
        assert caught.value.param == "max_tokens"
        with pytest.raises(InvalidRequest, match="prompt_logprobs") as caught:
            await manager.generate([1] * (most + 1), sampling=Sampling(max_tokens=1, prompt_logprobs=20))
        assert caught.value.param == "prompt_logprobs"
        # Without max_tokens an answer is as long as possible.
        async with manager.stream(GenerationRequest("hi", sampling=Sampling(logprobs=20))):
            (running,) = manager._open_requests
            assert running.sampling.max_tokens == most


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi", "n": 128, "max_tokens": 2000, "logprobs": 20}),
        ("/v1/completions", {"prompt": ["hi"] * 64, "n": 2, "max_tokens": 2050, "logprobs": 0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 16, "logprobs": True, "top_logprobs": 20}),
    ],
)
async def test_the_logprobs_of_all_choices_are_bounded_together(path, body):
    async with running_server(max_model_len=4096) as server:
        async with server.session.post(path, json=body) as response:
            assert check_error(response.status, await response.read(), {400}, path)["param"] == "n"
        async with server.session.post(path, json=body | {"n": 1, "max_tokens": 5, "ignore_eos": True}) as response:
            assert response.status == 200
            for choice in (await response.json())["choices"]:
                assert len(choice["logprobs"]["content" if "chat" in path else "tokens"]) == 5


async def test_a_large_answer_is_sent_in_parts_and_its_memory_is_given_back(monkeypatch):
    """A regression: after eight answers of 25 MB the process kept 400 MiB."""
    given_back = []
    monkeypatch.setattr(responses, "return_free_pages", lambda: given_back.append(True))
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 2, "max_tokens": 300, "ignore_eos": True}
    body |= {"logprobs": True, "top_logprobs": 3, "seed": 1}
    answers = []
    async with running_server() as server:
        for most in (2**20, 1000):
            monkeypatch.setattr(responses, "MAX_ANSWER", most)
            async with server.session.post("/v1/chat/completions", json=body) as response:
                answers.append((response.headers.get("Content-Length") is None, (await response.json())["choices"]))
    assert answers == [(False, answers[0][1]), (True, answers[0][1])]
    assert [len(choice["logprobs"]["content"]) for choice in answers[0][1]] == [300, 300]
    assert given_back == [True]


async def test_a_request_that_has_ended_leaves_nothing_to_the_garbage_collector():
    """A prompt may have megabytes, and the garbage collector runs only after seconds."""
    jobs = []
    async with EngineManager.open(engine="simulated") as manager:
        arrive = manager._arrive
        manager._arrive = lambda request, token: jobs.append(weakref.ref(job := arrive(request, token))) or job
        gc.collect()
        gc.disable()
        try:
            await manager.generate("hi", sampling=Sampling(max_tokens=3))
            with suppress(PromptTooLong):
                await manager.generate("hi " * 9000)
            async with manager.stream(GenerationRequest("hi", sampling=Sampling(max_tokens=300))) as stream:
                await anext(stream)
            del stream
            assert len(jobs) == 3
            assert [job() for job in jobs] == [None] * 3
        finally:
            gc.enable()
