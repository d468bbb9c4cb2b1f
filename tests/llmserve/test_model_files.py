"""Incomplete or damaged model folders: the error names the file, and no weights are read."""

import json
import struct
from typing import Any

import pytest

from llmserve import ConfigurationError
from llmserve.engines.vllm import start_checks
from llmserve.engines.vllm.model_files import INDEX, check_folder


def safetensors(sizes, *, cut=0):
    """Write a file with tensors of these sizes in bytes, `cut` bytes too short."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for number, size in enumerate(sizes):
        header[f"layer.{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + b"\1" * end
    return whole[: len(whole) - cut]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors([100, 50]))
    return tmp_path


def test_a_complete_folder_is_taken(folder):
    check_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_weights_of_other_formats_are_accepted_unchecked(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    check_folder(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            safetensors([100, 50], cut=1),
            r"model\.safetensors are damaged: the file has \d+ bytes and should have \d+; copy or download it again",
        ),
        (safetensors([100, 50]) + b"\0", "are damaged: the file has"),
        (safetensors([100, 50])[:40], "their header is longer than the file, which has 40 bytes"),
        (b"", "their header is not that of a safetensors file"),
        (b"\1\0\0", "their header is not that of a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "their header is not that of a safetensors file"),
        (struct.pack("<Q", 2) + b"{x", "their header is not that of a safetensors file"),
        (struct.pack("<Q", 13) + b'{"a": {"b":1}', "their header is not that of a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "are a pointer of Git LFS: run `git lfs pull`"),
    ],
)
def test_damaged_weights_are_named(folder, content, words):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        check_folder(folder)


def test_a_header_of_any_length_is_not_read_into_memory(folder):
    """The file has another format, whose first bytes form a large number."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**41)
    with pytest.raises(ConfigurationError, match="are damaged: their header is longer than the 100,000,000 bytes that the format allows"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", INDEX])
@pytest.mark.parametrize("text", ["", '{"a": ', "\udcff", "[" * 100_000])
def test_a_file_that_is_not_json_is_named(folder, name, text):
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=rf"{name} is not JSON .*copy or download it again"):
        check_folder(folder)


def test_a_config_that_is_another_kind_of_json_is_named(folder):
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"config\.json must hold a JSON object"):
        check_folder(folder)


def test_each_file_of_an_index_must_be_there_and_only_those_are_checked(folder):
    names = [f"model-{number}.safetensors" for number in range(3)]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("abc", names, strict=True))}))
    # It is not in the index, so the engine does not read it.
    (folder / "model.safetensors").write_bytes(b"old")
    (folder / names[1]).write_bytes(safetensors([10]))
    with pytest.raises(
        ConfigurationError, match=r"lacks model-0\.safetensors and 1 more of the 3 files that model\.safetensors\.index\.json"
    ):
        check_folder(folder)
    (folder / names[0]).write_bytes(safetensors([10]))
    (folder / names[2]).write_bytes(safetensors([10], cut=3))
    with pytest.raises(ConfigurationError, match=r"model-2\.safetensors are damaged"):
        check_folder(folder)
    (folder / names[2]).write_bytes(safetensors([10]))
    check_folder(folder)


def test_an_index_may_name_files_in_folders_below(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "part/model.safetensors"}}))
    with pytest.raises(ConfigurationError, match=r"lacks part/model\.safetensors of the 1 files"):
        check_folder(folder)
    (folder / "part").mkdir()
    (folder / "part/model.safetensors").write_bytes(safetensors([10]))
    check_folder(folder)


@pytest.mark.parametrize("name", ["", ".", "..", "\0"])
def test_an_index_that_names_no_file_is_an_error_of_ours(folder, name):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConfigurationError, match="of the 1 files that"):
        check_folder(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_named(folder, index):
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="has no weight_map"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("engine_args", "reads"),
    [
        ({}, True),
        ({"load_format": "safetensors", "distributed_executor_backend": "mp"}, True),
        ({"load_format": "dummy"}, False),
        ({"load_format": "tensorizer"}, False),
        ({"model_weights": "s3://bucket/weights"}, False),
        ({"distributed_executor_backend": "package.Executor"}, False),
    ],
)
def test_weights_are_wanted_where_the_engine_reads_them(folder, engine_args, reads, monkeypatch):
    # vLLM is not installed here.
    monkeypatch.setattr(start_checks, "find_spec", lambda name: name)
    (folder / "model.safetensors").unlink()
    if not reads:
        start_checks.check_model(str(folder), engine_args)
        return
    with pytest.raises(ConfigurationError, match=r"has no weights \(\*\.safetensors, "):
        start_checks.check_model(str(folder), engine_args)
