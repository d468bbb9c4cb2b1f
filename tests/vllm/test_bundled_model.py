"""The bundled model's conversion: what it writes, and that a damaged copy is made anew."""

import json

from llmserve import models


def test_it_is_converted_once_checked_and_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path))
    folder = models.bundled_folder()
    manifest = json.loads((folder / models.MANIFEST).read_text())
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= set(manifest["sha256"])
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2  # <|im_end|>
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]
    written = (folder / "config.json").stat().st_mtime_ns
    assert models.bundled_folder() == folder
    assert (folder / "config.json").stat().st_mtime_ns == written

    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    models.bundled_folder()
    assert models._sha256(folder / "model.safetensors") == manifest["sha256"]["model.safetensors"]
