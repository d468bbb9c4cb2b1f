"""Adapters that are loaded and unloaded while a manager runs."""

from types import SimpleNamespace

import anyio
import pytest
from contracts.adapter_contract import AdapterContract, ask
from contracts.engine_contract import CollectingSink
from engines import ScriptedEngine

from llmserve import ConfigurationError, EngineManager, ManagerConfig, ModelNotFound, RestartConfig, State, Unavailable
from llmserve.engine import EnginePrompt
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.engines.vllm.lora import Adapters

pytestmark = pytest.mark.anyio


@pytest.fixture
def folders(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in ("first", "second", "absent")]


class Engine(SimulatedEngine):
    """An engine that can be made to reject adapters."""

    rejects = False

    async def load_adapter(self, name, path):
        if self.rejects:
            raise ConfigurationError("bad weights")
        await super().load_adapter(name, path)


@pytest.fixture
def engines():
    return [Engine(SimulatedConfig(time_scale=0.1, start_seconds=0.01)) for _ in range(2)]


@pytest.fixture
async def manager(engines):
    config = ManagerConfig(restart=RestartConfig(first_pause=0.01), drain_timeout=1)
    async with EngineManager(engines, config) as manager:
        yield manager


class TestAdapters(AdapterContract):
    """On two engines."""


async def test_no_engine_keeps_an_adapter_that_one_rejects(manager, engines, folders):
    for rejecting in engines:
        rejecting.rejects = True
        with pytest.raises(ConfigurationError, match="bad weights"):
            await manager.load_adapter("sql", folders[0])
        assert [engine.info.adapters for engine in engines] == [(), ()]
        rejecting.rejects = False
    await manager.load_adapter("sql", folders[0])
    assert [engine.info.adapters for engine in engines] == [("sql",), ("sql",)]


async def test_both_engines_answer_and_a_restarted_one_too(manager, engines, folders):
    await manager.load_adapter("sql", folders[0])
    expected = (await manager.generate(ask("sql"))).token_ids
    for engine in engines:
        engine.kill()
        with anyio.fail_after(20):
            while not all(state.up for state in manager.statistics().engines):
                await anyio.sleep(0.01)
        for _ in range(4):
            assert (await manager.generate(ask("sql"))).token_ids == expected


async def test_a_waiting_request_whose_adapter_is_unloaded_gets_its_own_error(manager, engines, folders):
    await manager.load_adapter("sql", folders[0])
    prompt = EnginePrompt(token_ids=(1, 2, 3), adapter="sql")
    await manager.unload_adapter("sql")
    with pytest.raises(ModelNotFound, match="'sql'"):
        await engines[0].submit("late", prompt, ask("sql").sampling, 0, CollectingSink())


@pytest.mark.parametrize(("name", "path"), [("", "/x"), ("sql", ""), (None, "/x"), ("sql", 3)])
async def test_a_wrong_name_or_path_is_refused(manager, name, path):
    with pytest.raises(ConfigurationError, match="an adapter has a name and a path"):
        await manager.load_adapter(name, path)


async def test_an_engine_that_loads_none_says_so_and_a_closed_manager_too():
    async with EngineManager(ScriptedEngine(), ManagerConfig()) as manager:
        with pytest.raises(ConfigurationError, match="no adapters that can be loaded"):
            await manager.load_adapter("sql", "/adapters/sql")
    assert manager.state is State.STOPPED
    with pytest.raises(Unavailable):
        await manager.load_adapter("sql", "/adapters/sql")


async def test_a_vllm_engine_without_room_for_adapters_names_the_argument():
    with pytest.raises(ConfigurationError, match="enable_lora=true"):
        await Adapters({}).load(None, "sql", "hub/sql")


@pytest.mark.parametrize(
    ("args", "on_cpu", "places"),
    [({}, True, None), ({"enable_lora": True}, True, 9), ({"enable_lora": True}, False, 8), ({"lora_modules": {"a": "hub/a"}}, True, 2)],
)
def test_room_for_adapters(args, on_cpu, places):
    assert Adapters(args).engine_args(args, on_cpu=on_cpu).get("max_loras") == places


async def test_an_adapter_that_one_engine_gave_up_can_be_unloaded_and_loaded_again(manager, engines, folders):
    for engine in engines:
        await manager.load_adapter("sql", folders[0])
        # As at a restart for which its files were gone.
        await engine.unload_adapter("sql")
        with pytest.raises(ConfigurationError, match="unload it first"):
            await manager.load_adapter("sql", folders[0])
        await manager.unload_adapter("sql")
        assert [other.info.adapters for other in engines] == [(), ()]


class FakeLLM:
    """Loads every adapter; meanwhile another task unloads the adapter "late"."""

    errored = False

    def __init__(self, adapters):
        self.adapters, self.loaded = adapters, []

    async def add_lora(self, request):
        self.loaded.append(request)
        await self.adapters.unload(None, "late")


async def test_an_adapter_that_is_unloaded_during_a_start_does_not_end_it(monkeypatch):
    adapters = Adapters({"lora_modules": dict.fromkeys(("first", "late"), "hub/x")})
    monkeypatch.setattr(adapters, "request", lambda name, model: SimpleNamespace(lora_name=name, lora_path="hub/x"))
    llm = FakeLLM(adapters)
    await adapters.load_all(llm)
    assert [request.lora_name for request in llm.loaded] == ["first"]
    assert adapters.names == ("first",)
