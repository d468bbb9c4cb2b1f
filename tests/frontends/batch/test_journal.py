"""The journal of a batch: any part of it resumes to the same lines."""

import os

import anyio
import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from frontends.batch.journal import Journal
from frontends.batch.lines import InvalidLine, Line, answered, name_of, read_line, unanswered
from frontends.batch.source import check, numbered, remaining
from llmserve import ConfigurationError

PATH = "/v1/completions"
# Bodies with line breaks within texts, and texts of several bytes.
RESULTS = [answered(Line(n, f"a{n}\n\u2028é", PATH, b""), 200, "cmpl-1", b'{"text": "\\u00e9\\n\xc3\xa9"}') for n in (3, 1, 4)]
RESULTS += [unanswered(2, None, "invalid_line", "line 2: \n"), answered(Line(5, "e", PATH, b""), 400, "", b"{}")]


def line(number, custom_id=None, **fields):
    return msgspec.json.encode({"custom_id": custom_id or f"r{number}", "method": "POST", "url": PATH, "body": {"prompt": "hi"}, **fields})


async def filled(path, results, *, resume=False):
    journal = Journal(path, resume=resume)
    async with anyio.create_task_group() as tasks:
        for result in results:
            tasks.start_soon(journal.append, result)
    journal.close()


def numbers(path):
    return sorted(msgspec.json.decode(text)["id"] for text in path.read_bytes().splitlines())


@given(data=st.data())
def test_any_prefix_resumes_to_the_same_lines(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "out.jsonl"
    anyio.run(filled, path, RESULTS)
    whole = numbers(path)
    for _ in range(data.draw(st.integers(1, 3))):
        # A kill may tear the last line anywhere. A file without a line does not stay.
        if path.exists():
            os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
        journal = Journal(path, resume=True)
        done = {result.number for result in RESULTS if result.number in journal.done}
        assert len(journal.done) == len(done) == len(path.read_bytes().splitlines())
        journal.close()
        part = data.draw(st.integers(0, len(RESULTS)))
        anyio.run(lambda: filled(path, [result for result in RESULTS[:part] if result.number not in done], resume=True))  # noqa: B023
    journal = Journal(path, resume=True)
    rest = [result for result in RESULTS if result.number not in journal.done]
    journal.close()
    anyio.run(lambda: filled(path, rest, resume=True))
    assert numbers(path) == whole


def test_an_existing_output_is_refused_without_resume(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    with pytest.raises(ConfigurationError, match=r"out.jsonl exists: continue it with --resume"):
        Journal(path, resume=False)
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("text", ["mine\n", '{"id": "batch_req_x", "custom_id": null, "response": null, "error": null}\n', "{}\n"])
def test_another_file_is_refused_and_stays_as_it_is(tmp_path, text):
    path = tmp_path / "out.jsonl"
    path.write_text(text + "torn")
    with pytest.raises(ConfigurationError, match="line 1, is not a line of a batch's output"):
        Journal(path, resume=True)
    assert path.read_text() == text + "torn"


async def test_a_line_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    await filled(path, [RESULTS[0], RESULTS[1], RESULTS[0]])
    with pytest.raises(ConfigurationError, match="line 3, is not"):
        Journal(path, resume=True)


def test_two_processes_cannot_write_one_output(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", resume=True)
    with pytest.raises(ConfigurationError, match="is being written by another process"):
        Journal(tmp_path / "out.jsonl", resume=True)
    journal.close()


async def test_a_cancelled_line_is_written_once(tmp_path):
    path = tmp_path / "out.jsonl"
    journal = Journal(path, resume=False)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await journal.append(RESULTS[0])
    await journal.append(RESULTS[1])
    journal.close()
    assert numbers(path) == ["batch_req_1", "batch_req_3"]


async def test_a_full_disk_leaves_whole_lines_and_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    journal = Journal(path, resume=False)
    await journal.append(RESULTS[0])
    write = os.write

    def full(file, data):
        if len(data) < 5:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    # No test can fill the disk of the machine.
    monkeypatch.setattr("frontends.batch.journal.os.write", full)
    with pytest.raises(OSError, match="No space left"):
        await journal.append(RESULTS[1])
    with pytest.raises(OSError, match="No space left"):
        await journal.append(RESULTS[2])
    monkeypatch.undo()
    journal.close()
    assert numbers(path) == ["batch_req_3"]


async def test_lines_that_were_written_count_although_a_later_write_fails(tmp_path, monkeypatch):
    journal, write, failed = Journal(tmp_path / "out.jsonl", resume=False), os.write, []

    async def append(number):
        try:
            await journal.append(unanswered(number, f"r{number}", "code", "message"))
        except OSError:
            failed.append(number)

    async with anyio.create_task_group() as tasks:

        def full(file, data):
            if b"r4" in bytes(data):
                raise OSError(28, "No space left on device")
            if b"r3" in bytes(data):
                # The line comes while two others are written together; the second of them writes it.
                anyio.from_thread.run_sync(tasks.start_soon, append, 4)
            return write(file, data)

        monkeypatch.setattr("frontends.batch.journal.os.write", full)
        for number in (1, 2, 3):
            tasks.start_soon(append, number)
    monkeypatch.undo()
    journal.close()
    assert (failed, len(journal.done)) == ([4], 3)
    assert len(numbers(tmp_path / "out.jsonl")) == 3


def test_the_disk_is_synchronised_at_most_once_a_second(tmp_path, monkeypatch):
    now, synced = [0.0], []
    monkeypatch.setattr("frontends.batch.journal.os.fsync", lambda file: synced.append(now[0]))
    journal = Journal(tmp_path / "out.jsonl", resume=False, clock=lambda: now[0])

    async def write():
        for number in range(1, 25):
            now[0] += 0.25
            await journal.append(unanswered(number, None, "x", ""))

    anyio.run(write)
    assert synced == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    journal.close()
    assert len(synced) == 7


# The input


def test_lines_are_read_in_pieces_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("frontends.batch.source.MAX_LINE", 100)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([line(1), b"", b"x" * 350, b"  ", line(5)]))
    assert [(number, len(text)) for number, text in numbered(path)] == [(1, len(line(1)) + 1), (3, 101), (5, len(line(5)))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(1), line(2, "r1")], "lines 1 and 2, have the same custom_id 'r1'"),
        ([], "has no lines"),
        ([line(1), line(2), line(3)], "has more than 2 lines"),
    ],
)
def test_an_input_with_a_fault_is_refused(tmp_path, lines, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    journal = Journal(tmp_path / "out.jsonl", resume=False)
    with pytest.raises(ConfigurationError, match=message):
        check(path, journal.done, most=2)
    journal.close()


async def test_the_output_of_another_input_is_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(line(1) + b"\n" + line(2, "other"))
    journal = Journal(tmp_path / "out.jsonl", resume=False)
    await journal.append(answered(Line(2, "r2", PATH, b""), 200, "", b"{}"))
    with pytest.raises(ConfigurationError, match="line 2, is not the line that was answered before"):
        check(path, journal.done)
    journal.close()


async def test_only_lines_that_are_not_done_remain(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(line(number) for number in range(1, 41)))
    journal = Journal(tmp_path / "out.jsonl", resume=False)
    for number in range(2, 41):
        if number != 30:
            await journal.append(answered(Line(number, f"r{number}", PATH, b""), 200, "", b"{}"))
    checked = check(path, journal.done)
    assert [number async for number, _ in remaining(checked, journal.done)] == [1, 30]
    assert (checked.total, len(journal.done)) == (40, 38)
    journal.close()


@pytest.mark.parametrize(
    ("text", "custom_id", "message"),
    [
        (b"nonsense", None, "JSON is malformed"),
        (b"\xff", None, "malformed"),
        (line(7, method="GET"), "r7", "method must be POST, not 'GET'"),
        (line(7, url="/v1/models"), "r7", "url must be /v1/completions, not '/v1/models'"),
        (line(7, body=None) + b"x", None, "malformed"),
        (b'{"custom_id": "r7"}', "r7", "missing required field `method`"),
        (line(7, "x" * 513), "x" * 513, "custom_id must have 1 to 512 characters"),
        (b'{"custom_id": 5}', None, "Expected `str`"),
        (b"x" * (5 * 2**20), None, "the line is longer than"),
    ],
)
def test_an_invalid_line_has_its_result(text, custom_id, message):
    with pytest.raises(InvalidLine, match=message) as caught:
        read_line(7, text, [PATH])
    result = caught.value.result
    assert (result.id, result.custom_id, result.response, result.error.code) == ("batch_req_7", custom_id, None, "invalid_line")
    assert result.error.message.startswith("line 7: ")
    # A resumed batch finds the same name in the input.
    assert name_of(text) == custom_id


@pytest.mark.parametrize("content", [b'{"precious": 1}', b'{"custom_id": "a", "method": "POST"}', b"[]", b'{"id":"other"'])
def test_a_file_that_is_no_output_is_not_touched(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="line 1, is not a line of a batch's output"):
        Journal(path, resume=True)
    assert path.read_bytes() == content


def test_a_resumed_output_without_lines_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"id":"batch_r')
    Journal(path, resume=True).close()
    assert path.read_bytes() == b""
