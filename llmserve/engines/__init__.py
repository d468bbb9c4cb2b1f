"""Engines behind the protocol in `llmserve.engine`. Importing this imports none of them."""

from collections.abc import Mapping
from typing import Any

from llmserve.engine import Engine
from llmserve.engines.simulated.spec import SimulatedSpec
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm.spec import VLLMSpec
from llmserve.errors import ConfigurationError

# By the name that programs give; the first is the default.
ENGINES: dict[str, EngineSpec] = {"vllm": VLLMSpec(), "simulated": SimulatedSpec()}


def create_engine(engine: str, model: str, engine_args: Mapping[str, Any]) -> Engine:
    """Make an engine by name, without starting it. Raises ConfigurationError for an unknown name or argument."""
    (made,) = create_engines(engine, model, engine_args, 1)
    return made


def create_engines(engine: str, model: str, engine_args: Mapping[str, Any], count: int) -> list[Engine]:
    """Make `count` engines by name for one pool, without starting them.

    vLLM's engines share this process's GPUs or CPU cores. Raises ConfigurationError for an unknown
    name or argument, and for more engines than the devices can take.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"unknown engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if type(count) is not int or count < 1:
        raise ConfigurationError(f"engines must be a whole number of at least 1, not {count!r}")
    return ENGINES[engine].create_pool(model, engine_args, count)
