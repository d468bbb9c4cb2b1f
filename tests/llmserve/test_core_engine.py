"""The stand-in core passes the contract of engines, so the tests of deaths test an engine."""

import anyio
import pytest
from contracts.engine_contract import EngineContract, assert_dead
from support.core_engine import CoreEngine


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


class TestContract(EngineContract):
    @pytest.fixture(scope="class")
    async def engine(self):
        engine = CoreEngine()
        async with anyio.create_task_group() as tasks:
            await tasks.start(engine.run)
            yield engine
            tasks.cancel_scope.cancel()
        await assert_dead(engine)
