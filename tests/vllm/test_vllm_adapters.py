"""LoRA adapters for the bundled model: one changes nothing, and one changes everything."""

import asyncio
import shutil

import attrs
import pytest
from contracts.adapter_contract import AdapterContract, ask
from vllm_adapter_files import write_adapter

from llmserve import ConfigurationError, EngineManager, GenerationRequest, InvalidRequest, ModelNotFound, Sampling

pytestmark = pytest.mark.nightly

GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True)


async def test_each_adapter_answers_in_its_own_way_in_one_batch(tmp_path):
    modules = {"nothing": write_adapter(tmp_path / "nothing", 8, 0.0), "everything": write_adapter(tmp_path / "everything", 16, 3.0)}
    async with EngineManager.open("bundled", engine_args={"lora_modules": modules}) as manager:
        assert manager.info.adapters == ("nothing", "everything")

        def ask(adapter):
            return GenerationRequest("The capital of France is", sampling=GREEDY, adapter=adapter)

        plain, same = await manager.generate(ask(None)), await manager.generate(ask("nothing"))
        assert "Paris" in plain.text
        assert same.token_ids == plain.token_ids
        # In one batch each request uses its own adapter, and the model itself none.
        for _ in range(3):
            base, same, other = await asyncio.gather(*[manager.generate(ask(name)) for name in (None, "nothing", "everything")])
            assert base.token_ids == same.token_ids == plain.token_ids
            assert other.token_ids[0] != plain.token_ids[0]
        # Beside other requests it would end the engine.
        with pytest.raises(InvalidRequest) as caught:
            await manager.generate(ask(None), prompt_logprobs=0)
        assert caught.value.param == "prompt_logprobs"
        with pytest.raises(ModelNotFound, match="'absent'"):
            await manager.generate(ask("absent"))
        assert manager.statistics().open == 0


async def test_a_broken_adapter_is_named_at_the_start(tmp_path):
    folder = write_adapter(tmp_path / "broken", 8, 0.0)
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigurationError, match="'broken'"):
        async with EngineManager.open("bundled", engine_args={"lora_modules": {"broken": folder}}):
            pass


@pytest.fixture
def folders(tmp_path):
    first, second = (write_adapter(tmp_path / name, 16, strength) for name, strength in (("first", 3.0), ("second", -5.0)))
    broken = write_adapter(tmp_path / "broken", 8, 0.0)
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"no weights")
    return first, second, broken


@pytest.fixture
async def manager():
    async with EngineManager.open("bundled", engine_args={"enable_lora": True}) as manager:
        yield manager


class TestAdapters(AdapterContract):
    """Adapters that come and go."""


async def test_an_adapter_whose_files_are_gone_ends_alone_at_a_restart(manager, folders, tmp_path):
    await manager.load_adapter("first", folders[0])
    await manager.load_adapter("second", folders[1])
    shutil.rmtree(tmp_path / "second")
    await manager.restart_engines()
    assert manager.info.adapters == ("first",)
    await manager.generate(ask("first"))


async def test_other_files_in_the_same_folder_and_under_the_same_name_are_used(manager, folders, tmp_path):
    # Long enough for the prefix cache.
    request = attrs.evolve(ask("sql"), prompt="The capital of France is " * 40)
    await manager.load_adapter("sql", folders[0])
    first = await manager.generate(request)
    await manager.unload_adapter("sql")
    shutil.copy(tmp_path / "second/adapter_model.safetensors", tmp_path / "first/adapter_model.safetensors")
    await manager.load_adapter("sql", folders[0])
    second = await manager.generate(request)
    assert second.usage.cached_tokens == 0
    assert second.token_ids != first.token_ids
