import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from http_support import running_server
from hypothesis import given
from hypothesis import strategies as st
from program_support import fetch, program

from frontends.http.event_stream import EventStream
from frontends.http.idempotency_store import CLAIM_SECONDS, KEEP_SECONDS, MAX_ANSWER, OVERHEAD, CachedResponse, Name, ResponseCache
from frontends.http.routes import generation
from frontends.openai.errors import HTTPFailure
from frontends.workers.idempotency import IdempotencyClient, IdempotencyServer
from frontends.workers.messages import Claim

pytestmark = pytest.mark.anyio

HI = {"prompt": "hello", "max_tokens": 5, "temperature": 1.0}
KEY = {"Idempotency-Key": "one"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"n": 3}, {"n": 2, "stream": True}])
@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
async def test_the_same_post_has_the_same_answer_and_generates_nothing(path, more):
    if path == "/generate" and "n" in more:
        return
    async with running_server() as server:
        answers = []
        for _ in range(3):
            async with server.session.post(path, json={**HI, **more}, headers=KEY) as response:
                answers.append((response.status, response.content_type, await response.text()))
                replayed = response.headers.get("Idempotent-Replayed")
                assert replayed == (None if len(answers) == 1 else "true")
        assert len(set(answers)) == 1
        assert server.manager.metrics()["requests"]["completed"] == more.get("n", 1)
        async with server.session.post(path, json={**HI, **more}, headers={"Idempotency-Key": "two"}) as response:
            assert (response.status, response.content_type, await response.text()) != answers[0]


async def test_another_body_is_refused_and_a_wrong_key_too():
    async with running_server() as server:
        await server.post("/v1/completions", HI, headers=KEY)
        status, answer, _ = await server.post("/v1/completions", {**HI, "max_tokens": 6}, headers=KEY)
        assert (status, answer["error"]["code"]) == (422, "idempotency_key_reused")
        status, answer, _ = await server.post("/v1/completions", HI, headers={"Idempotency-Key": "x" * 256})
        assert (status, answer["error"]["code"]) == (400, "invalid_idempotency_key")
        # On another route it is a different key.
        status, _, _ = await server.post("/generate", HI, headers=KEY)
        assert status == 200


async def test_a_request_that_failed_or_was_left_is_generated_again():
    async with running_server(time_scale=1.0, step_seconds=0.05) as server:
        for _ in range(2):
            status, _, _ = await server.post("/v1/completions", {**HI, "max_tokens": 0}, headers=KEY)
            assert status == 400
        body = {**HI, "max_tokens": 1000, "ignore_eos": True}
        with anyio.move_on_after(0.3):
            await server.post("/v1/completions", body, headers={"Idempotency-Key": "left"})
        with anyio.fail_after(10):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.session.get, "/health")
            with anyio.move_on_after(0.3):
                status, _, _ = await server.post("/v1/completions", body, headers={"Idempotency-Key": "left"})
                raise AssertionError(f"it should run again, and not answer {status}")


async def test_a_repeated_request_is_409_while_the_first_is_answered():
    async with running_server(time_scale=1.0, step_seconds=0.05) as server:
        body = {**HI, "ignore_eos": True, "max_tokens": 10}
        statuses = []

        async def first():
            statuses.append((await server.post("/v1/completions", body, headers=KEY))[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            with anyio.fail_after(10):
                while not server.manager.statistics().open:
                    await anyio.sleep(0.01)
            status, answer, headers = await server.post("/v1/completions", body, headers=KEY)
            assert (status, answer["error"]["code"], headers["Retry-After"]) == (409, "idempotency_conflict", "1")
        assert statuses == [200]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 40), st.floats(0, 400)), max_size=60))
def test_the_memory_is_bounded_and_never_mixes(moves):
    now, most = 0.0, 4 * OVERHEAD
    answers, model = ResponseCache(lambda: now, most), {}
    for key, body, size, pause in moves:
        now += pause
        name = Name("t", "k", "/r", str(key))
        if name in model and model[name][2] <= now:
            del model[name]
        try:
            kept = answers.claim(name, bytes([body]))
        except HTTPFailure as error:
            assert error.status == 422
            assert model[name][0] != body
            continue
        if isinstance(kept, CachedResponse):
            assert (kept.answer, kept.body) == (model[name][1], bytes([body]))
        else:
            answer = bytes([key, body]) * size
            answers.end(kept, "t", answer)
            model[name] = (body, answer, now + KEEP_SECONDS)
        assert 0 <= answers.size <= most
        model = {one: value for one, value in model.items() if answers._kept.get("t", one)}


def name_of(tenant, value="1"):
    return Name(tenant, "k", "/r", value)


def test_a_huge_answer_is_not_stored():
    answers: Any = ResponseCache(lambda: 0.0)
    answers.end(answers.claim(name_of("t"), b""), "t", b"x" * (MAX_ANSWER + 1))
    assert answers.size == 0
    assert not isinstance(answers.claim(name_of("t"), b""), CachedResponse)


async def test_of_a_stream_that_is_too_large_nothing_is_recorded(monkeypatch):
    """A regression: a 57 MB stream with a key cost 108 MB although it is never kept."""
    monkeypatch.setattr(generation, "MAX_ANSWER", 2000)
    recorded = []
    real = EventStream._keep

    def watch(self, data, record):
        real(self, data, record)
        recorded.append(sum(map(len, self._record or ())))

    monkeypatch.setattr(EventStream, "_keep", watch)
    async with running_server() as server:
        for tokens, replayed in ((2, "true"), (500, None)):
            body = {**HI, "max_tokens": tokens, "ignore_eos": True, "stream": True}
            for _ in range(2):
                async with server.session.post("/generate", json=body, headers={"Idempotency-Key": str(tokens)}) as response:
                    assert b"[DONE]" in await response.read()
            assert response.headers.get("Idempotent-Replayed") == replayed
    assert max(recorded) <= 2000
    assert recorded[-1] == 0


@pytest.mark.parametrize("owner_answers_first", [True, False])
@pytest.mark.parametrize("turns", range(4))
async def test_a_client_lost_around_the_supervisor_s_answer_leaves_no_claim(turns, owner_answers_first):
    """A regression: a client lost just as `Claimed` came left its key answering 409 forever."""
    answers, mail = ResponseCache(asyncio.get_running_loop().time), []
    worker = IdempotencyClient(mail.append)
    admission_server = IdempotencyServer(answers, worker.claimed)
    asking = asyncio.create_task(worker.begin(name_of("t"), b""))
    await asyncio.sleep(0)
    steps: list[Callable[[], object]] = [lambda: admission_server.receive(mail.pop(0)), asking.cancel]
    for step in steps if owner_answers_first else reversed(steps):
        step()
        for _ in range(turns):
            await asyncio.sleep(0)
    (found,) = await asyncio.gather(asking, return_exceptions=True)
    if not isinstance(found, asyncio.CancelledError):
        assert isinstance(found, int)
        # The claim was taken before the client was lost, so its holder ends it.
        worker.end(found)
    while mail:
        admission_server.receive(mail.pop(0))
    assert not isinstance(answers.claim(name_of("t"), b""), CachedResponse)


def test_a_claim_ends_with_its_worker_and_by_its_age():
    now = 0.0
    answers = ResponseCache(lambda: now)
    admission_server = IdempotencyServer(answers, lambda _: None)
    admission_server.receive(Claim(1, name_of("t"), b""))
    with pytest.raises(HTTPFailure, match="still being answered"):
        answers.claim(name_of("t"), b"")
    admission_server.close()
    lost: Any = answers.claim(name_of("t"), b"")
    now = CLAIM_SECONDS - 1
    with pytest.raises(HTTPFailure, match="still being answered"):
        answers.claim(name_of("t"), b"")
    now = CLAIM_SECONDS
    mine: Any = answers.claim(name_of("t"), b"other")
    # The previous request may still end, but it no longer has the claim.
    answers.end(lost, "t", b"late")
    answers.end(mine, "t", b"mine")
    kept: Any = answers.claim(name_of("t"), b"other")
    assert kept.answer == b"mine"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000)), max_size=80))
def test_no_tenant_pushes_out_another_s_answers(moves):
    """Each tenant keeps at least an equal share of the memory."""
    most = 40 * OVERHEAD
    answers: Any = ResponseCache(lambda: 0.0, most)
    taken = {tenant: [] for tenant in range(4)}
    for number, (tenant, size) in enumerate(moves):
        name = name_of(str(tenant), str(number))
        answers.end(answers.claim(name, b""), "t", b"x" * size)
        taken[tenant].append((name, size + OVERHEAD))
        assert answers.size <= most
        for mine in taken.values():
            share = 0
            for name, taking in reversed(mine):
                share += taking
                # The newest responses that fit into a quarter are all kept.
                if share > most // 4:
                    break
                assert isinstance(answers.claim(name, b""), CachedResponse)


async def test_workers_share_their_answers(tmp_path):
    """Repeat a POST on new connections until both workers have answered it."""
    async with program(tmp_path, "--workers", "2") as (_, url, _):
        found = [await fetch(f"{url}/v1/completions", HI, KEY) for _ in range(6)]
        assert {status for status, _ in found} == {200}
        assert len({body for _, body in found}) == 1
        assert (await fetch(f"{url}/v1/completions", {**HI, "max_tokens": 6}, KEY))[0] == 422
