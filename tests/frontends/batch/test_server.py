"""/v1/files and /v1/batches on the simulated engine, called by the unmodified OpenAI client."""

import asyncio
import io
import json
import os
import threading
from contextlib import asynccontextmanager
from functools import partial

import anyio
import openai
import pytest
from http_support import running_server
from program_support import MODULE, PATIENCE, program

from frontends.access.api_keys import Key, Keys, digest
from frontends.access.control import Access
from frontends.batch import store as stores
from frontends.batch.answers import Answers
from frontends.batch.journal import Journal
from frontends.batch.places import Places
from frontends.batch.service import BatchService
from frontends.batch.store import Store
from frontends.http.routes.upload import begun
from llmserve import ConfigurationError

PATH = "/v1/chat/completions"


def lines(count, url=PATH, **fields):
    body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, **fields}
    return [{"custom_id": f"r{number}", "method": "POST", "url": url, "body": body} for number in range(1, count + 1)]


def text(found):
    return "".join(json.dumps(line) + "\n" for line in found).encode()


class Clock:
    """Seconds since 1970, which a test sets forward."""

    now = 1_800_000_000.0

    def __call__(self):
        return self.now


@asynccontextmanager
async def served(folder, clock=None, *, runs=True, **more):
    """Run a server with a folder; yield it and a client. With `runs` False, no batch begins."""
    clock, made = clock or Clock(), []

    def app_of(manager):
        made.append(BatchService(manager, "sim", Store(folder, clock), clock))
        return {"batches": made[0]}

    async with running_server(app_of=app_of, **more) as server:
        if not runs:
            made[0]._places = Places(0, 0)
        async with made[0].running(), openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield server, client


async def created(client, content, endpoint=PATH, **more):
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


async def ended(client, batch, *statuses):
    with anyio.fail_after(PATIENCE):
        while (batch := await client.batches.retrieve(batch.id)).status not in (
            statuses or ("completed", "failed", "expired", "cancelled")
        ):
            await anyio.sleep(0.01)
    return batch


async def content(client, file_id):
    return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]


async def test_the_client_s_way_from_a_file_to_its_answers(tmp_path):
    given = [*lines(20), *lines(1, temperature=9)]
    given[-1]["custom_id"] = "wrong"
    async with served(tmp_path / "store") as (_, client):
        batch = await created(client, text(given) + b"nonsense\n", metadata={"night": "1"})
        assert (batch.status, batch.metadata, batch.endpoint) == ("validating", {"night": "1"}, PATH)
        assert batch.expires_at - batch.created_at == 24 * 3600
        batch = await ended(client, batch)
        assert batch.status == "completed"
        # A client sees the end only when a kill cannot take it back.
        assert json.loads((tmp_path / "store" / f"{batch.id}.json").read_text())["object"]["status"] == "completed"
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (22, 20, 2)
        assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        found = await content(client, batch.output_file_id)
        assert sorted(line["custom_id"] for line in found) == sorted(f"r{number}" for number in range(1, 21))
        assert all(line["response"]["body"]["object"] == "chat.completion" for line in found)
        wrong, nonsense = sorted(await content(client, batch.error_file_id), key=lambda line: line["id"])
        assert (wrong["custom_id"], wrong["response"]["status_code"], wrong["error"]) == ("wrong", 400, None)
        assert (nonsense["custom_id"], nonsense["response"], nonsense["error"]["code"]) == (None, None, "invalid_line")
        assert [file.purpose async for file in client.files.list()] == ["batch_output", "batch_output", "batch"]
        assert [one.id async for one in client.batches.list(limit=1)] == [batch.id]


async def test_files_are_listed_in_pages_described_and_deleted(tmp_path):
    async with served(tmp_path, runs=False) as (server, client):
        files = [await client.files.create(file=(f"{number}.jsonl", b"x\n"), purpose="batch") for number in range(5)]
        assert {file.id async for file in client.files.list(limit=2)} == {file.id for file in files}
        assert (await client.files.retrieve(files[0].id)).filename == "0.jsonl"
        assert (await client.files.delete(files[0].id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(files[0].id)
        assert files[0].id not in {path.stem for path in tmp_path.iterdir()}
        for query in ("limit=0", "limit=x", "order=up", "after=file-x"):
            async with server.session.get(f"/v1/files?{query}") as response:
                assert (await response.json())["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"input_file_id": "../lock"}, None),
        ({"output_expires_after": {}}, "output_expires_after"),
    ],
)
async def test_an_invalid_batch_is_refused(tmp_path, wanted, param):
    async with served(tmp_path, runs=False) as (server, client):
        file = await client.files.create(file=("in.jsonl", text(lines(1))), purpose="batch")
        body = {"input_file_id": file.id, "endpoint": PATH, "completion_window": "24h", **wanted}
        status, answer, _ = await server.post("/v1/batches", body)
        assert status == (400 if param else 404)
        assert answer["error"]["param"] == param
        assert [one async for one in client.batches.list()] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"\n\n", "has no lines"),
        (text(lines(1) + lines(1)), "lines 1 and 2, have the same custom_id 'r1'"),
    ],
)
async def test_an_invalid_file_fails_the_batch_and_names_no_path(tmp_path, given, message):
    async with served(tmp_path) as (_, client):
        batch = await ended(client, await created(client, given))
        assert batch.status == "failed"
        assert message in batch.errors.data[0].message
        assert str(tmp_path) not in batch.errors.data[0].message
        assert batch.input_file_id in batch.errors.data[0].message


async def test_a_damaged_journal_fails_the_batch_and_names_no_path(tmp_path):
    async with served(tmp_path, runs=False) as (_, client):
        batch = await created(client, text(lines(1)))
    (tmp_path / f"{batch.id}.jsonl").write_bytes(b"nonsense\n")
    async with served(tmp_path) as (_, client):
        batch = await ended(client, batch)
        assert batch.status == "failed"
        assert batch.errors.data[0].message.startswith(f"the journal of {batch.id}, line 1, is not a line of a batch's output")


async def test_a_cancelled_batch_keeps_its_answers(tmp_path):
    async with served(tmp_path, time_scale=0.2) as (_, client):
        batch = await created(client, text(lines(300, max_tokens=100)))
        while not (await client.batches.retrieve(batch.id)).request_counts.completed:
            await anyio.sleep(0.01)
        assert (await client.batches.cancel(batch.id)).status in ("cancelling", "finalizing", "cancelled")
        batch = await ended(client, batch)
        assert batch.status == "cancelled"
        assert 0 < batch.request_counts.completed < 300
        answers, errors = await content(client, batch.output_file_id), await content(client, batch.error_file_id)
        assert len({line["custom_id"] for line in answers + errors}) == len(answers + errors) == 300
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}


async def test_an_idempotency_key_cancels_each_batch_that_a_path_names(tmp_path):
    async with served(tmp_path, runs=False) as (_, client):
        for _ in range(2):
            batch = await created(client, text(lines(1)))
            cancelled = await client.batches.cancel(batch.id, extra_headers={"Idempotency-Key": "k"})
            assert (cancelled.id, cancelled.status != batch.status) == (batch.id, True)


async def test_a_failed_batch_keeps_its_answers(tmp_path, monkeypatch):
    append, left = Journal.append, [5]

    async def full(journal, result):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        await append(journal, result)

    monkeypatch.setattr(Journal, "append", full)
    async with served(tmp_path) as (_, client):
        batch = await ended(client, await created(client, text(lines(50))))
        assert (batch.status, batch.errors.data[0].code) == ("failed", "storage_error")
        assert len(await content(client, batch.output_file_id)) == batch.request_counts.completed == 5
    async with served(tmp_path) as (_, client):
        assert len(await content(client, batch.output_file_id)) == 5
        assert (await client.batches.retrieve(batch.id)).output_file_id == batch.output_file_id


async def test_answers_count_as_files_and_a_batch_without_room_fails(tmp_path, monkeypatch):
    given = text(lines(50))
    most = len(given) + 4000
    monkeypatch.setattr(stores, "MAX_BYTES", most)
    async with served(tmp_path) as (_, client):
        batch = await ended(client, await created(client, given))
        assert (batch.status, batch.errors.data[0].code) == ("failed", "too_many_files")
        assert 0 < len(await content(client, batch.output_file_id)) == batch.request_counts.completed < 50
        left = most - sum([file.bytes async for file in client.files.list()])
    # The next start counts the files, and no journal.
    async with served(tmp_path) as (_, client):
        with pytest.raises(openai.BadRequestError, match="bytes of files"):
            await client.files.create(file=("x", bytes(left + 1)), purpose="batch")
        await client.files.create(file=("x", bytes(left)), purpose="batch")


async def test_an_unexpected_error_in_a_line_does_not_end_the_batch(tmp_path, monkeypatch):
    answer = Answers.__call__

    async def fails(answers, path, body, caller):
        if b"break" in body:
            raise RuntimeError("secret")
        return await answer(answers, path, body, caller)

    monkeypatch.setattr(Answers, "__call__", fails)
    async with served(tmp_path) as (_, client):
        batch = await ended(client, await created(client, text([*lines(3), {**lines(1, user="break")[0], "custom_id": "b"}])))
        assert (batch.status, batch.request_counts.completed) == ("completed", 3)
        (line,) = await content(client, batch.error_file_id)
        assert (line["custom_id"], line["response"]["status_code"]) == ("b", 500)
        assert "secret" not in json.dumps(line)


async def test_a_file_that_a_batch_needs_is_not_deleted(tmp_path):
    async with served(tmp_path, runs=False) as (_, client):
        batch = await created(client, text(lines(1)))
        with pytest.raises(openai.ConflictError, match=batch.id):
            await client.files.delete(batch.input_file_id)
    async with served(tmp_path) as (_, client):
        assert (await ended(client, batch)).status == "completed"
        assert (await client.files.delete(batch.input_file_id)).deleted


@pytest.mark.parametrize("runs", [True, False])
async def test_a_batch_expires(tmp_path, runs):
    """Also one that waits for a place."""
    clock = Clock()
    async with served(tmp_path, clock, runs=False) as (_, client):
        batch = await created(client, text(lines(3)))
    clock.now += 24 * 3600
    async with served(tmp_path, clock, runs=runs) as (_, client):
        batch = await ended(client, batch)
        assert (batch.status, batch.expired_at, batch.output_file_id) == ("expired", int(clock.now), None)
        assert [line["error"]["code"] for line in await content(client, batch.error_file_id)] == ["batch_expired"] * 3


async def test_a_cancelled_batch_that_waits_for_a_place_ends_at_once(tmp_path):
    async with served(tmp_path, runs=False) as (_, client):
        batch = await created(client, text(lines(3)))
        await client.batches.cancel(batch.id)
        batch = await ended(client, batch)
        assert (batch.status, batch.output_file_id) == ("cancelled", None)
        assert [line["error"]["code"] for line in await content(client, batch.error_file_id)] == ["batch_cancelled"] * 3


@pytest.mark.parametrize("method", ["keep", "create", "save"])
async def test_a_client_that_leaves_does_not_cut_what_it_asked_for(tmp_path, monkeypatch, method):
    entered, go, left = threading.Event(), threading.Event(), anyio.Event()
    original, finish = getattr(Store, method), BatchService.finish

    def slow(*args):
        entered.set()
        go.wait(PATIENCE)
        return original(*args)

    async def watched(batches, work):
        try:
            return await finish(batches, work)
        except asyncio.CancelledError:
            left.set()
            raise

    monkeypatch.setattr(BatchService, "finish", watched)
    async with served(tmp_path, time_scale=0.2) as (_, client):
        batch = await ended(client, await created(client, text(lines(300, max_tokens=100))), "in_progress")
        ask = {
            "keep": partial(client.files.create, file=("x", b"x"), purpose="batch"),
            "create": partial(client.batches.create, input_file_id=batch.input_file_id, endpoint=PATH, completion_window="24h"),
            "save": partial(client.batches.cancel, batch.id),
        }[method]
        monkeypatch.setattr(Store, method, slow)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await anyio.to_thread.run_sync(entered.wait)
                tasks.cancel_scope.cancel()
            await left.wait()
            go.set()
            if method == "keep":
                while len([one async for one in client.files.list()]) < 2:
                    await anyio.sleep(0.01)
            elif method == "create":
                while len(found := [one async for one in client.batches.list()]) < 2 or found[0].status == "validating":
                    await anyio.sleep(0.01)
            else:
                assert (await ended(client, batch)).status == "cancelled"


async def test_a_client_that_leaves_while_its_file_begins_leaves_nothing(tmp_path, monkeypatch):
    entered, go, opened, begin = threading.Event(), threading.Event(), threading.Event(), Store.begin

    def slow(*args):
        entered.set()
        go.wait(PATIENCE)
        try:
            return begin(*args)
        finally:
            opened.set()

    monkeypatch.setattr(Store, "begin", slow)
    beginning = asyncio.create_task(begun(Store(tmp_path), None))
    await anyio.to_thread.run_sync(entered.wait)
    # As aiohttp does when the connection is gone.
    beginning.cancel()
    await asyncio.wait([beginning], timeout=0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    await anyio.to_thread.run_sync(opened.wait)
    assert os.listdir(tmp_path) == []


async def test_a_batch_is_cancelled_even_if_its_state_cannot_be_stored(tmp_path, monkeypatch):
    save = Store.save

    def fails(store, record):
        if record.object.status == "cancelling":
            raise OSError(28, "No space left on device")
        save(store, record)

    monkeypatch.setattr(Store, "save", fails)
    async with served(tmp_path, time_scale=0.2) as (_, client):
        batch = await ended(client, await created(client, text(lines(300, max_tokens=100))), "in_progress")
        with pytest.raises(openai.InternalServerError):
            await client.batches.cancel(batch.id)
        batch = await ended(client, batch)
        assert batch.status == "cancelled"
        assert batch.request_counts.completed < 300


KEYS = Keys([Key(name, digest(f"lls_{name}"), name) for name in ("alice", "bob")])


async def test_a_tenant_s_batch_does_not_wait_for_those_of_another_one(tmp_path, monkeypatch):
    """Also after a restart, which begins with the oldest."""
    monkeypatch.setattr("frontends.batch.service.AT_ONCE", 2)
    clock, hers = Clock(), []
    async with served(tmp_path, clock, time_scale=0.2, app={"access": Access(KEYS)}) as (_, client):
        alice = client.with_options(api_key="lls_alice")
        for _ in range(4):
            clock.now += 1
            hers.append(await created(alice, text(lines(300, max_tokens=100))))
        for batch in hers[:2]:
            await ended(alice, batch, "in_progress")
    async with served(tmp_path, clock, time_scale=0.2, app={"access": Access(KEYS)}) as (_, client):
        alice, bob = client.with_options(api_key="lls_alice"), client.with_options(api_key="lls_bob")
        assert (await ended(bob, await created(bob, text(lines(10))))).status == "completed"
        found = [(await alice.batches.retrieve(batch.id)).status for batch in hers]
        assert found == ["in_progress", "in_progress", "validating", "validating"]


async def test_tenants_see_only_what_is_theirs(tmp_path):
    async with served(tmp_path, app={"access": Access(KEYS)}) as (_, client):
        alice, bob = client.with_options(api_key="lls_alice"), client.with_options(api_key="lls_bob")
        batch = await ended(alice, await created(alice, text(lines(2))))
        assert batch.status == "completed"
        for call in (
            bob.files.retrieve(batch.input_file_id),
            bob.files.content(batch.output_file_id),
            bob.files.delete(batch.input_file_id),
            bob.batches.retrieve(batch.id),
            bob.batches.cancel(batch.id),
            bob.batches.create(input_file_id=batch.input_file_id, endpoint=PATH, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError, match="there is no"):
                await call
        assert [one async for one in bob.files.list()] == [one async for one in bob.batches.list()] == []
        assert len([one async for one in alice.files.list()]) == 2
        with pytest.raises(openai.AuthenticationError):
            await client.files.list()


async def test_uploads_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("frontends.http.routes.upload.MAX_FILE", 3 * 2**20)
    monkeypatch.setattr(stores, "MAX_BYTES", 4 * 2**20)
    monkeypatch.setattr(stores, "MAX_FILES", 2)
    async with served(tmp_path, runs=False) as (server, client):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=("big", bytes(4 * 2**20)), purpose="batch")
        assert caught.value.status_code == 413
        await client.files.create(file=("one", bytes(3 * 2**20)), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="bytes of files"):
            await client.files.create(file=("two", bytes(3 * 2**20)), purpose="batch")
        await client.files.create(file=("small", b"x"), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="at most 2 files"):
            await client.files.create(file=("third", b"x"), purpose="batch")
        # Nothing of a refused file stays.
        assert len(list(tmp_path.glob("*.jsonl"))) == 2
        assert not list(tmp_path.glob("*.part"))
        assert server.manager.state == "ready"


FORM = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="x"\r\n\r\n%b\r\n'


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (FORM % (b"file", b"x") + FORM % (b"purpose", b"fine-tune") + b"--b--\r\n", 400, "purpose"),
        (FORM % (b"file", b"x") + b"--b--\r\n", 400, "purpose"),
        (FORM % (b"purpose", b"batch") + b"--b--\r\n", 400, "file"),
        (FORM % (b"file", b"") + FORM % (b"purpose", b"batch") + b"--b--\r\n", 400, "file"),
        (FORM % (b"other", b"x") + b"--b--\r\n", 400, "other"),
        (FORM % (b"file", b"x") + FORM % (b"file", b"y") + b"--b--\r\n", 400, "file"),
        (FORM % (b"purpose", b"batch") + FORM % (b"purpose", b"batch") + b"--b--\r\n", 400, "purpose"),
        (FORM % (b"purpose", b"batch" * 100) + b"--b--\r\n", 400, "purpose"),
        (FORM % (b"file", b"x"), 400, None),
        (b"nonsense", 400, None),
        (b"", 400, None),
    ],
)
async def test_an_invalid_form_is_refused_and_leaves_nothing(tmp_path, body, status, param):
    async with served(tmp_path, runs=False) as (server, _):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        async with server.session.post("/v1/files", data=io.BytesIO(body), headers=headers) as response:
            assert response.status == status, await response.text()
            assert (await response.json())["error"]["param"] == param
        async with server.session.post("/v1/files", json={}) as response:
            assert response.status == 415
        assert os.listdir(tmp_path) == ["lock"]


async def test_a_file_name_that_is_not_utf_8_is_accepted(tmp_path):
    body = (
        FORM.replace(b'"x"', b'"a\xffb"') % (b"file", b"x")
        + b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
    )
    async with served(tmp_path, runs=False) as (server, client):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        async with server.session.post("/v1/files", data=io.BytesIO(body), headers=headers) as response:
            assert response.status == 200, await response.text()
        assert [file.filename async for file in client.files.list()] == ["a?b"]


async def test_two_deletions_of_one_file_at_once_are_no_error_of_the_server(tmp_path):
    async with served(tmp_path, runs=False) as (server, client):
        for _ in range(5):
            file, found = await client.files.create(file=("x", b"x"), purpose="batch"), []

            async def delete(file_id=file.id, found=found):
                async with server.session.delete(f"/v1/files/{file_id}") as response:
                    found.append(response.status)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(delete)
                tasks.start_soon(delete)
            assert sorted(found) == [200, 404]


@pytest.mark.parametrize("sent", [0, 20, 80, 200])
async def test_an_upload_that_stops_arriving_is_refused(tmp_path, monkeypatch, sent):
    monkeypatch.setattr("frontends.net.deadlines.BODY_SECONDS", 0.2)

    async def stalls():
        if sent:
            yield (FORM % (b"purpose", b"batch") + FORM % (b"file", b"x" * 100))[:sent]
        await anyio.sleep_forever()

    async with served(tmp_path, runs=False) as (server, _):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        with anyio.fail_after(PATIENCE):
            async with server.session.post("/v1/files", data=stalls(), headers=headers) as response:
                assert response.status == 408
        assert os.listdir(tmp_path) == ["lock"]


async def test_without_a_folder_the_routes_answer_an_error(server):
    for method, path in (("POST", "/v1/files"), ("GET", "/v1/files/x/content"), ("POST", "/v1/batches"), ("DELETE", "/v1/files/x")):
        async with server.session.request(method, path) as response:
            assert response.status == 404
            assert "start it with --batch-folder" in (await response.json())["error"]["message"]


def test_two_processes_cannot_own_a_folder(tmp_path):
    store = Store(tmp_path)
    store.open()
    with pytest.raises(ConfigurationError, match="is used by another process"):
        Store(tmp_path).open()
    store.close()


async def test_a_server_that_is_killed_continues_its_batches(tmp_path):
    """Killed three times, it has each line once."""
    options, batch = ["--batch-folder", str(tmp_path / "store")], None
    for kill in range(4):
        async with program(tmp_path, *options) as (process, url, _):
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
                batch = batch or await created(client, text(lines(400, max_tokens=24, ignore_eos=True)))
                if kill < 3:
                    with anyio.fail_after(PATIENCE):
                        while (await client.batches.retrieve(batch.id)).request_counts.completed < 60 * (kill + 1):
                            await anyio.sleep(0.01)
                    process.kill()
                    continue
                batch = await ended(client, batch)
                answers = await content(client, batch.output_file_id)
    assert batch is not None
    assert (batch.status, batch.error_file_id, batch.request_counts.completed) == ("completed", None, 400)
    assert sorted(line["custom_id"] for line in answers) == sorted(f"r{number}" for number in range(1, 401))
    # The journal is not needed any more. The next start removes what the last kill may have left of it.
    store = Store(tmp_path / "store")
    store.open()
    store.close()
    assert not list((tmp_path / "store").glob("batch_*.jsonl"))


async def test_several_workers_are_refused(tmp_path):
    command = [*MODULE, "--engine", "simulated", "--batch-folder", str(tmp_path), "--workers", "2", "--port", "0"]
    found = await anyio.run_process(command, check=False)
    assert found.returncode == 2
    assert b"--batch-folder and --workers 2 exclude each other" in found.stderr
