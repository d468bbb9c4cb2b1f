"""LoRA adapters: models that are the one that is served and a little more. Which there are is said at the start (`lora_modules`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmserve.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

# The name that vLLM's own server has for it.
ARGUMENT = "lora_modules"
# The ranks that vLLM has kernels for (vllm/config/lora.py), and its own default.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16
# Different ones in one step; each takes GPU memory from the KV cache.
MAX_CONCURRENCY = 8


class Adapters:
    """Names and where each one is: a folder in PEFT's form, or a hub name. Raises ConfigurationError, naming what is wrong."""

    def __init__(self, modules: Any) -> None:
        if not isinstance(modules, Mapping) or not all(isinstance(one, str) and one for pair in modules.items() for one in pair):
            raise ConfigurationError(f'{ARGUMENT} is written {{"name": "folder"}}, not {modules!r}')
        self._modules = dict(modules)
        self._ids = {name: number for number, name in enumerate(modules, 1)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def engine_args(self, given: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
        """What vLLM has to be told to have room for them, where nothing else is `given`. Raises ConfigurationError."""
        if not self._modules:
            return {}
        rank = max(_rank(name, path) for name, path in self._modules.items())
        fitting = [one for one in RANKS if one >= rank]
        if not fitting:
            raise ConfigurationError(f"{ARGUMENT} has an adapter of rank {rank}; vLLM's largest is {RANKS[-1]}")
        count = len(self._modules)
        # On a CPU vLLM (0.32) takes the place -1 of a request without an adapter for the last place that there is: in one batch with
        # adapters, the model itself answered with one of them. A last place that is never taken adds nothing.
        places = count + 1 if on_cpu else min(count, MAX_CONCURRENCY)
        if on_cpu and given.get("max_loras", places) < places:
            raise ConfigurationError(f"max_loras must be at least {places} on a CPU, one more than there are adapters")
        return {"enable_lora": True, "max_loras": places, "max_cpu_loras": max(count, places), "max_lora_rank": fitting[0]}

    def request(self, name: str | None) -> "LoRARequest | None":
        from vllm.lora.request import LoRARequest

        return None if name is None else LoRARequest(name, self._ids[name], self._modules[name])

    async def load(self, llm: "AsyncLLM") -> None:
        """All of them, so that a broken one is told of at the start. Raises ConfigurationError."""
        for name in self._modules:
            request = self.request(name)
            assert request is not None
            try:
                await llm.add_lora(request)
            except Exception as error:
                raise ConfigurationError(f"the adapter {name!r} cannot be loaded from {self._modules[name]}: {error}") from error


def _rank(name: str, path: str) -> int:
    """As the adapter's own file says; vLLM's default for one on a hub, which is looked at when it is loaded."""
    if not Path(path).exists():
        if path.startswith(("/", ".")):
            raise ConfigurationError(f"{ARGUMENT} has no folder {path} for {name!r}")
        return DEFAULT_RANK
    try:
        return int(json.loads(Path(path, "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{ARGUMENT} has no adapter in {path} for {name!r}: adapter_config.json: {error}") from None
