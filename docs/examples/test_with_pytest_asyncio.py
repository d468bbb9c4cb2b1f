"""An engine in fixtures of pytest-asyncio: `pytest -c pytest.ini test_with_pytest_asyncio.py` in this folder.

pytest-asyncio runs the two halves of a fixture in two tasks of one event loop, which a manager allows.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from llmserve import EngineManager, Sampling


@pytest_asyncio.fixture
async def manager() -> AsyncIterator[EngineManager]:
    """A new engine for each test."""
    async with EngineManager.open(engine="simulated") as manager:
        yield manager


@pytest.mark.asyncio
async def test_an_answer_has_as_many_tokens_as_it_may(manager: EngineManager) -> None:
    completion = await manager.generate("Hello", sampling=Sampling(max_tokens=5, ignore_eos=True))
    assert (len(completion.token_ids), completion.finish_reason) == (5, "length")


# A real engine takes half a minute to start: share it, and run its tests in the event loop that started it.


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared() -> AsyncIterator[EngineManager]:
    async with EngineManager.open(engine="simulated") as manager:
        yield manager


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("prompt", ["Hello", "Goodbye"])
async def test_tests_share_an_engine(shared: EngineManager, prompt: str) -> None:
    assert (await shared.generate(prompt, sampling=Sampling(max_tokens=5))).text
