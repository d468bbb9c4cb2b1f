import anyio
import pytest
from http_support import running_server
from hypothesis import given
from hypothesis import strategies as st
from program_support import fetch, program

from frontends.errors import HTTPFailure
from frontends.http.idempotency import KEEP_SECONDS, MOST_ANSWER, OVERHEAD, Answers

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
        # Elsewhere it is another key.
        status, _, _ = await server.post("/generate", HI, headers=KEY)
        assert status == 200


async def test_what_failed_or_was_left_is_begun_anew():
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


async def test_while_it_is_answered_the_second_is_told_to_come_again():
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
    answers, model = Answers(lambda: now, most), {}
    for key, body, size, pause in moves:
        now += pause
        name = ("k", "/r", str(key))
        if name in model and model[name][2] <= now:
            del model[name]
        try:
            kept = answers.claim(name, bytes([body]))
        except HTTPFailure as error:
            assert error.status == 422
            assert model[name][0] != body
            continue
        if kept is not None:
            assert (kept.answer, kept.body) == (model[name][1], bytes([body]))
        else:
            answer = bytes([key, body]) * size
            answers.end(name, "t", answer)
            model[name] = (body, answer, now + KEEP_SECONDS)
        assert 0 <= answers.bytes <= most
        model = {one: value for one, value in model.items() if one in answers._kept}


def test_a_huge_answer_is_not_kept():
    answers = Answers(lambda: 0.0)
    assert answers.claim(("k", "/r", "1"), b"") is None
    answers.end(("k", "/r", "1"), "t", b"x" * (MOST_ANSWER + 1))
    assert answers.bytes == 0
    assert answers.claim(("k", "/r", "1"), b"") is None


async def test_workers_share_their_answers(tmp_path):
    """A post that is sent again, on a new connection each time, meets both of them."""
    async with program(tmp_path, "--workers", "2") as (_, url, _):
        found = [await fetch(f"{url}/v1/completions", HI, KEY) for _ in range(6)]
        assert {status for status, _ in found} == {200}
        assert len({body for _, body in found}) == 1
        assert (await fetch(f"{url}/v1/completions", {**HI, "max_tokens": 6}, KEY))[0] == 422
