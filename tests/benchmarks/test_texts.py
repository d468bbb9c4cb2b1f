"""Prompts as text from files, and the labels of what was sent."""

import collections
import itertools
import json

import pytest

from benchmarks.__main__ import main
from benchmarks.recording import storage
from benchmarks.workload.requests import AtMost, Fixed, Workload
from benchmarks.workload.texts import read_texts
from benchmarks.workload.traces import UnreadableFile

SHAREGPT = json.dumps(
    [
        {"id": "a", "conversations": [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three four five"}]},
        {"id": "b", "conversations": [{"from": "gpt", "value": "an answer without a question"}]},
        {"id": "c", "conversations": []},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "six"}, {"role": "assistant", "content": "seven"}]},
    ]
)
LINES = '{"prompt": "one two", "output_tokens": 7}\n\n{"text": "three", "answer": "four five"}\n'


def words(text):
    return len(text.split())


def texts(tmp_path, content, count=words):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    return read_texts(path, count)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SHAREGPT, [("one two", 2, 3), ("six", 1, 1)]),
        (LINES, [("one two", 2, 7), ("three", 1, 2)]),
        ('{"question": "one"}\n', [("one", 1, None)]),
    ],
    ids=["ShareGPT", "lines", "no answers"],
)
def test_the_usual_files_of_prompts_are_read(tmp_path, content, expected):
    file = texts(tmp_path, content)
    assert [(text.prompt, text.tokens, text.answer) for text in file.texts] == expected
    assert (file.answers is None) == (expected[0][2] is None)
    assert str(file) == "prompts.json (median 1)"
    assert "estimated" in str(texts(tmp_path, content, None))


IMAGES = """{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image> what"}, {"from": "gpt", "value": "a"}]}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]}]}
{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "input_image"}]}]}
{"prompt": "one", "images": ["x"], "output_tokens": 3}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "two "}, {"type": "text", "text": "words"}]}]}
"""


def test_entries_with_images_are_skipped_with_one_notice_of_their_number(tmp_path, call):
    """Regression: a message of several parts stopped the run."""
    file = texts(tmp_path, IMAGES)
    assert [text.prompt for text in file.texts] == ["two words"]
    assert file.with_images == 4
    out, path = tmp_path / "run.json", tmp_path / "prompts.json"
    command = ["run", "--engine", "simulated", "--no-ceiling", "--concurrency", "1", "--requests", "1", "--per-client", "1"]
    ended = call(main, *command, "--prompt-file", str(path), "--out", str(out))
    assert ended.stderr.count(f"{path}: skipped 4 entries with images, and read 1 prompts\n") == 1
    assert storage.read(out).run.workload["prompts_with_images"] == 4
    path.write_text(IMAGES.splitlines()[0])
    with pytest.raises(UnreadableFile, match="no prompts without images"):
        read_texts(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no prompts"),
        ("[{", "prompts.json: "),
        ('{"prompt": "a"}\n{"when": 3}', "entry 2: unknown format"),
        ('{"prompt": 3}', "entry 1: unknown format"),
        ("[3]", "entry 1"),
        ("text", "entry 1"),
    ],
)
def test_an_invalid_file_is_named(tmp_path, content, words):
    with pytest.raises(UnreadableFile, match=words):
        texts(tmp_path, content)


def test_each_prompt_is_sent_before_any_is_sent_again(tmp_path):
    file = texts(tmp_path, LINES)
    workload = Workload(prompt=file, output=AtMost(file.answers), vocabulary=(1, 9), natural=True, timeout=5.0)
    items = list(itertools.islice(workload.items("part"), 6))
    assert collections.Counter(item.text for item in items) == {"one two": 3, "three": 3}
    assert {(item.text, item.prompt_tokens, item.max_tokens) for item in items} == {("one two", 2, 7), ("three", 1, 2)}
    assert {(item.natural, item.timeout, item.prompt) for item in items} == {(True, 5.0, ())}
    fixed = Workload(prompt=file, output=Fixed(3), vocabulary=(1, 9))
    assert {item.max_tokens for item in itertools.islice(fixed.items(), 6)} == {3}


TRACE = "".join(f'{{"timestamp": {number}, "input_length": {20 + number}, "output_length": 4}}\n' for number in range(4))


@pytest.mark.parametrize(
    ("option", "content", "prompt", "output"),
    [
        (["--trace"], TRACE, "sent.jsonl (median 21)", "sent.jsonl (median 4)"),
        (["--concurrency", "2", "--prompt-file"], LINES, "sent.jsonl, estimated (median 1)", "sent.jsonl, estimated (median 2)"),
        (["--natural-lengths", "--concurrency", "2"], None, "128", "at most 64"),
    ],
    ids=["trace", "prompts", "natural lengths"],
)
def test_a_point_is_labelled_as_what_was_sent(option, content, prompt, output, tmp_path, call):
    """Regression: a trace was labelled "prompt 128"."""
    arguments = [*option]
    if content is not None:
        (tmp_path / "sent.jsonl").write_text(content)
        arguments.append(str(tmp_path / "sent.jsonl"))
    out = tmp_path / "run.json"
    found = call(
        main, "run", "--engine", "simulated", "--no-ceiling", "--requests", "4", "--per-client", "2", *arguments, "--out", str(out)
    )
    assert found.returncode == 0, found.stderr
    recording = storage.read(out)
    (point,) = recording.run.points
    assert (point.prompt, point.output) == (prompt, output)
    assert recording.run.workload["prompt"] == [prompt]
    assert {record.outcome for record in recording.records} == {"ok"}
    assert f"| {prompt} |" in found.stdout


@pytest.mark.parametrize("option", ["--shared-prefix", "--turns"])
def test_a_file_of_prompts_has_no_conversations(option, tmp_path, call):
    (tmp_path / "p.jsonl").write_text(LINES)
    found = call(
        main, "run", "--concurrency", "1", "--prompt-file", str(tmp_path / "p.jsonl"), option, "2", "--out", str(tmp_path / "r.json")
    )
    assert found.returncode == 2
    assert "not --prompt-file" in found.stderr
