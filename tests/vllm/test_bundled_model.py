"""The bundled model's conversion: its output, and the repair of a damaged copy."""

import json
import shutil

import pytest

from llmserve import models

pytestmark = pytest.mark.nightly


def test_only_a_damaged_copy_is_converted_again(tmp_path, monkeypatch):
    whole = models.bundled_folder()
    damaged = tmp_path / whole.name
    shutil.copytree(whole, damaged)
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path))
    folder = models.bundled_folder()
    assert folder == damaged
    manifest = json.loads((folder / models.MANIFEST).read_text())
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= set(manifest["sha256"])
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2  # <|im_end|>
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]
    written = (folder / "config.json").stat().st_mtime_ns
    assert models.bundled_folder() == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert models._sha256(folder / "model.safetensors") == manifest["sha256"]["model.safetensors"]
    assert models._sha256(folder / "model.safetensors") == models._sha256(whole / "model.safetensors")
