"""Memory estimates of models whose size is known."""

import json

import pytest

from benchmarks.analysis.memory import read_shape

# The relevant part of the published config.json of Qwen2.5-1.5B.
QWEN = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def shape(tmp_path, dtype=None, **changes):
    (tmp_path / "config.json").write_text(json.dumps(QWEN | changes))
    return read_shape(tmp_path, dtype)


def test_the_parameters_of_a_known_model(tmp_path):
    # The files on its model card hold 1,543,714,304 parameters; the estimate leaves out the
    # attention's biases.
    assert shape(tmp_path).parameters == pytest.approx(1_543_714_304, rel=1e-3)
    assert shape(tmp_path).weights == 2 * shape(tmp_path).parameters
    assert shape(tmp_path, tie_word_embeddings=False).parameters - shape(tmp_path).parameters == 1536 * 151_936


def test_the_cache_of_a_token(tmp_path):
    assert shape(tmp_path).kv_bytes_per_token == 2 * 28 * 2 * 128 * 2
    assert shape(tmp_path, dtype="float32").kv_bytes_per_token == 2 * 28 * 2 * 128 * 4


def test_another_kind_of_model_is_not_guessed_at(tmp_path):
    assert read_shape(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert read_shape(tmp_path) is None
