"""LoRA adapters: variants of the served model, configured at the start (`lora_modules`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmserve.errors import ConfigurationError, InvalidRequest
from llmserve.request import Sampling

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

# The argument's name in vLLM's own server.
ARGUMENT = "lora_modules"
# The ranks for which vLLM has kernels (vllm/config/lora.py), and its default.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16
# Maximum number of different adapters in one step; each takes GPU memory from the KV cache.
MAX_CONCURRENCY = 8


class Adapters:
    """Adapters by name: a folder in PEFT's format, or a hub name.

    Raises ConfigurationError, which names what is wrong.
    """

    def __init__(self, modules: Any) -> None:
        if not isinstance(modules, Mapping) or not all(isinstance(one, str) and one for pair in modules.items() for one in pair):
            raise ConfigurationError(f'{ARGUMENT} must be written as {{"name": "folder"}}, not {modules!r}')
        self._modules = dict(modules)
        self._ids = {name: number for number, name in enumerate(modules, 1)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def engine_args(self, given: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
        """Return vLLM's arguments for these adapters, as defaults. Raises ConfigurationError."""
        if not self._modules:
            return {}
        rank = max(_rank(name, path) for name, path in self._modules.items())
        fitting = [one for one in RANKS if one >= rank]
        if not fitting:
            raise ConfigurationError(f"{ARGUMENT} has an adapter of rank {rank}; vLLM's largest is {RANKS[-1]}")
        count = len(self._modules)
        # On a CPU, vLLM (0.32) treats the slot -1 of a request without an adapter as the last slot.
        # In one batch with adapters, the model itself then answered with one of them. A last slot
        # that is never used adds nothing.
        places = count + 1 if on_cpu else min(count, MAX_CONCURRENCY)
        if on_cpu and given.get("max_loras", places) < places:
            raise ConfigurationError(f"max_loras must be at least {places} on a CPU, one more than there are adapters")
        return {"enable_lora": True, "max_loras": places, "max_cpu_loras": max(count, places), "max_lora_rank": fitting[0]}

    def check(self, sampling: Sampling) -> None:
        """Raise InvalidRequest for a prompt's logprobs, which would end an engine with adapters.

        vLLM (0.25.1 to 0.33) applies the adapters to the prompt's logits with an index that has one
        entry for each request, and not for each token. In a batch of several requests its CPU build
        raises an error, and its GPU kernels check the same sizes.
        """
        if self._modules and sampling.prompt_logprobs is not None:
            words = "prompt_logprobs (also of echo with logprobs) is not supported on a server with LoRA adapters: vLLM's engine would end"
            raise InvalidRequest(words, "prompt_logprobs")

    def request(self, name: str | None) -> "LoRARequest | None":
        from vllm.lora.request import LoRARequest

        return None if name is None else LoRARequest(name, self._ids[name], self._modules[name])

    async def load(self, llm: "AsyncLLM") -> None:
        """Load all adapters, to find a broken one at the start. Raises ConfigurationError."""
        for name in self._modules:
            request = self.request(name)
            assert request is not None
            try:
                await llm.add_lora(request)
            except Exception as error:
                raise ConfigurationError(f"the adapter {name!r} cannot be loaded from {self._modules[name]}: {error}") from error


def _rank(name: str, path: str) -> int:
    """Return the rank from the adapter's file, or vLLM's default for a hub name.

    vLLM reads the file of a hub name when it loads the adapter.
    """
    if not Path(path).exists():
        if path.startswith(("/", ".")):
            raise ConfigurationError(f"{ARGUMENT} has no folder {path} for {name!r}")
        return DEFAULT_RANK
    try:
        return int(json.loads(Path(path, "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{ARGUMENT} has no adapter in {path} for {name!r}: adapter_config.json: {error}") from None
