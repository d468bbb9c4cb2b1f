"""The contract of engines whose adapters come and go: `manager` has one and no adapters yet.

`folders` are those of two adapters that answer differently, and a third without files.
"""

import anyio
import pytest

from llmserve import ConfigurationError, GenerationRequest, ModelNotFound, Sampling

GREEDY = Sampling(max_tokens=8, temperature=0, ignore_eos=True)


def ask(adapter):
    return GenerationRequest("The capital of France is", sampling=GREEDY, adapter=adapter)


class AdapterContract:
    """The contract tests."""

    async def test_adapters_come_and_go_while_the_engine_serves(self, manager, folders):
        first, second, broken = folders
        assert manager.info.adapters == ()
        plain = await manager.generate(ask(None))
        with pytest.raises(ModelNotFound, match="'sql'"):
            await manager.generate(ask("sql"))
        await manager.load_adapter("sql", first)
        assert manager.info.adapters == ("sql",)
        answer = await manager.generate(ask("sql"))
        assert answer.token_ids != plain.token_ids
        with pytest.raises(ConfigurationError, match="there is an adapter 'sql'; unload it first"):
            await manager.load_adapter("sql", second)
        with pytest.raises(ConfigurationError, match="'broken'"):
            await manager.load_adapter("broken", broken)
        assert manager.info.adapters == ("sql",)
        # Other files under the same name: nothing that the engine kept of the first is used.
        await manager.unload_adapter("sql")
        with pytest.raises(ModelNotFound, match="'sql'"):
            await manager.generate(ask("sql"))
        await manager.load_adapter("sql", second)
        found = {}

        async def answered(adapter):
            found[adapter] = (await manager.generate(ask(adapter))).token_ids

        async with anyio.create_task_group() as tasks:
            for adapter in ("sql", None):
                tasks.start_soon(answered, adapter)
        assert answer.token_ids != found["sql"] != found[None] == plain.token_ids
        with pytest.raises(ConfigurationError, match="there is no adapter 'poetry'"):
            await manager.unload_adapter("poetry")

    async def test_a_request_that_has_started_ends_after_its_adapter_is_unloaded(self, manager, folders):
        await manager.load_adapter("sql", folders[0])
        expected = await manager.generate(ask("sql"))
        async with manager.stream(ask("sql")) as stream:
            tokens = list((await anext(stream)).token_ids)
            await manager.unload_adapter("sql")
            async for delta in stream:
                tokens += delta.token_ids
        assert tuple(tokens) == expected.token_ids
        assert manager.info.adapters == ()
