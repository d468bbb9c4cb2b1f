"""The simulated engine as programs know it before they make it."""

from collections.abc import Mapping
from typing import Any

from llmserve.engine import Engine
from llmserve.engines.spec import EngineSpec


class SimulatedSpec(EngineSpec):
    """An engine without a model."""

    def create(self, model: str, args: Mapping[str, Any]) -> Engine:
        from llmserve.engines.simulated.engine import SimulatedEngine

        return SimulatedEngine.from_args(model, args)
