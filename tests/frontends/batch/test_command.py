"""`llmserve batch` as a program on the simulated engine, which is killed, interrupted and continued."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from frontends.batch import command
from frontends.batch.command import main

COMMAND = [sys.executable, "-c", "import sys; from frontends.cli.main import main; sys.exit(main())", "batch"]
ENGINE = ["--engine", "simulated", "--model", "sim"]
PATIENCE = 120


def written(path, count, **fields):
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "sim", "messages": [{"role": "user", "content": f"{number}?"}], "max_tokens": 24, **fields},
        }
        for number in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments), *ENGINE], capture_output=True, text=True, timeout=PATIENCE, check=False)


def started(source, target, *arguments, lines):
    """Start the program, and return it when the output has as many lines."""
    process = subprocess.Popen([*COMMAND, str(source), str(target), *arguments, *ENGINE], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + PATIENCE
    while not target.exists() or target.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.002)
    return process


def test_a_batch_that_is_killed_five_times_has_each_line_once(tmp_path):
    source, target, moments = written(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl", random.Random()
    resume = []
    for kill in range(5):
        have = target.read_bytes().count(b"\n") if target.exists() else 0
        process = started(source, target, *resume, lines=moments.randint(have, have + 30))
        process.kill()
        process.communicate(timeout=PATIENCE)
        resume = ["--resume"] if target.exists() else []
        assert kill or resume
    with target.open("ab") as file:
        # As if the kernel had had part of a line.
        file.write(b'{"id":"batch_req_1","custom')
    found = call(source, target, "--resume")
    assert found.returncode == 0, found.stderr
    assert sorted(line["custom_id"] for line in results(target)) == sorted(f"r{number}" for number in range(1, 301))
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in results(target))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(tmp_path, number):
    source, target = written(tmp_path / "in.jsonl", 2000), tmp_path / "out.jsonl"
    process = started(source, target, lines=5)
    process.send_signal(number)
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "to continue, repeat the command with --resume" in words
    assert "Traceback" not in words
    assert 5 <= len(results(target)) < 2000


def test_the_exit_code_says_whether_a_line_failed(tmp_path):
    source, target = written(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    with source.open("a") as file:
        file.write("nonsense\n")
    found = call(source, target)
    assert found.returncode == 1
    assert "4/4 lines, 1 failed" in found.stderr
    again = call(source, target, "--resume")
    assert again.returncode == 1
    assert "4 lines, of which 4 are done" in again.stderr
    assert len(results(target)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.jsonl", "out.jsonl"], "out.jsonl exists: continue it with --resume, or name another file"),
        (["missing.jsonl", "new.jsonl"], "missing.jsonl cannot be read: No such file or directory"),
        (["in.jsonl", "missing/new.jsonl"], "missing/new.jsonl cannot be written: No such file or directory"),
        (["twice.jsonl", "new.jsonl"], "twice.jsonl, lines 1 and 2, have the same custom_id 'r1'"),
        (["in.jsonl", "out.jsonl", "--resume"], "out.jsonl, line 1, is not a line of a batch's output: name the output of this batch"),
        (["in.jsonl", "new.jsonl", "--engine-arg", "max_num_seqs=x"], "max_num_seqs"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    # It has no engine to start, and no logging to set up in this process.
    monkeypatch.setattr(command, "configure", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "in.jsonl", 2)
    (tmp_path / "out.jsonl").write_text("mine\n")
    (tmp_path / "twice.jsonl").write_text(2 * (tmp_path / "in.jsonl").read_text().splitlines(keepends=True)[0])
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *ENGINE])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("llmserve batch: error: ")
    assert message in last
    assert not (tmp_path / "new.jsonl").exists()
