"""What of vLLM's arguments can be tested without vLLM; the rest is in tests/vllm."""

import warnings

import pytest

from llmserve import ConfigurationError
from llmserve.engines import create_engine
from llmserve.engines.vllm_args import _context_of, check_version, parse_engine_arg


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("max_num_seqs=32", ("max_num_seqs", 32)),
        ("--max-num-seqs=32", ("max_num_seqs", 32)),
        ("enforce_eager=true", ("enforce_eager", True)),
        ("enforce_eager=False", ("enforce_eager", False)),
        ("dtype=bfloat16", ("dtype", "bfloat16")),
        ('compilation_config={"level": 0}', ("compilation_config", {"level": 0})),
        ("revision=None", ("revision", None)),
        ("chat_template=a=b", ("chat_template", "a=b")),
    ],
)
def test_a_command_line_argument_is_json_or_a_string(text, parsed):
    assert parse_engine_arg(text) == parsed


@pytest.mark.parametrize("text", ["max_num_seqs", "=3", ""])
def test_what_is_not_key_and_value_is_named(text):
    with pytest.raises(ConfigurationError, match="key=value"):
        parse_engine_arg(text)


@pytest.mark.parametrize("found", ["0.25.0", "0.25.1", "0.32.0", "0.33.4rc1", "0.33.0+cu130"])
def test_a_supported_version_is_silent(found):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version(found)


@pytest.mark.parametrize("found", ["0.24.9", "0.34.0", "1.0", "dev"])
def test_any_other_version_is_warned_of_by_name(found):
    with pytest.warns(RuntimeWarning, match=found):
        check_version(found)


def test_the_context_comes_from_the_model_s_config(tmp_path):
    assert _context_of(str(tmp_path)) == 2048
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 1024}')
    assert _context_of(str(tmp_path)) == 1024


def test_an_unknown_engine_is_named():
    with pytest.raises(ConfigurationError, match="unknown engine 'fast'"):
        create_engine("fast", "bundled", {})
