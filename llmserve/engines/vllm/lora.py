"""LoRA adapters: variants of the served model, from `lora_modules` or loaded while the engine is up."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from llmserve.engines.vllm.outputs import translate
from llmserve.errors import ConfigurationError, InvalidRequest, ModelNotFound
from llmserve.request import Sampling

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

# The argument's name in vLLM's own server.
ARGUMENT = "lora_modules"
# The ranks for which vLLM has kernels (vllm/config/lora.py), and its default.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16
# Maximum number of different adapters in one step; each takes GPU memory from the KV cache. Without
# adapters at the start, `enable_lora` reserves as many places for later ones.
MAX_CONCURRENCY = 8


class Adapters:
    """Adapters by name: a folder in PEFT's format, or a hub name.

    Raises ConfigurationError, which names what is wrong.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        """`args` are the engine's arguments."""
        modules = args.get(ARGUMENT, {})
        if not isinstance(modules, Mapping) or not all(isinstance(one, str) and one for pair in modules.items() for one in pair):
            raise ConfigurationError(f'{ARGUMENT} must be written as {{"name": "folder"}}, not {modules!r}')
        self.enabled = bool(modules or args.get("enable_lora"))
        self._requests: dict[str, tuple[int, str]] = {}
        # The same object until something changes.
        self.names: tuple[str, ...] = ()
        self._last = 0
        # Names of the adapters that the engine has had.
        self._proven: set[str] = set()
        for name, path in modules.items():
            self._add(name, path)

    def engine_args(self, given: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
        """Return vLLM's arguments for these adapters, as defaults. Raises ConfigurationError."""
        if not self.enabled:
            return {}
        rank = max((_rank(name, path) for name, (_, path) in self._requests.items()), default=DEFAULT_RANK)
        fitting = [one for one in RANKS if one >= rank]
        if not fitting:
            raise ConfigurationError(f"{ARGUMENT} has an adapter of rank {rank}; vLLM's largest is {RANKS[-1]}")
        count = len(self._requests)
        # On a CPU, vLLM (0.32) treats the slot -1 of a request without an adapter as the last slot.
        # In one batch with adapters, the model itself then answered with one of them. A last slot
        # that is never used adds nothing.
        places = (count or MAX_CONCURRENCY) + 1 if on_cpu else min(count or MAX_CONCURRENCY, MAX_CONCURRENCY)
        if on_cpu:
            _check_places(count, given.get("max_loras", places))
        return {"enable_lora": True, "max_loras": places, "max_cpu_loras": max(count, places), "max_lora_rank": fitting[0]}

    def check(self, sampling: Sampling) -> None:
        """Raise InvalidRequest for a prompt's logprobs, which would end an engine with adapters.

        vLLM (0.25.1 to 0.33) applies the adapters to the prompt's logits with an index that has one
        entry for each request, and not for each token. In a batch of several requests its CPU build
        raises an error, and its GPU kernels check the same sizes.
        """
        if self.enabled and sampling.prompt_logprobs is not None:
            words = "prompt_logprobs (also of echo with logprobs) is not supported on a server with LoRA adapters: vLLM's engine would end"
            raise InvalidRequest(words, "prompt_logprobs")

    def request(self, name: str | None, model: str) -> "LoRARequest | None":
        """Return the adapter in vLLM's form. Raises ModelNotFound."""
        from vllm.lora.request import LoRARequest

        if name is None:
            return None
        if name not in self._requests:
            raise ModelNotFound(name, model, "adapter")
        number, path = self._requests[name]
        # vLLM keeps the beginnings of prompts by the name and the path, so an adapter that takes the
        # place of another needs a name of its own.
        return LoRARequest(f"{name}#{number}", number, path)

    async def load_all(self, llm: "AsyncLLM") -> None:
        """Load all adapters at a start of the engine, to find a broken one.

        Raises ConfigurationError for one that the engine has never had. One that is gone since then
        is given up, because the engine serves others too.
        """
        for name in self.names:
            if name not in self._requests:
                # Unloaded during this start.
                continue
            try:
                await self._load(llm, name)
            except ConfigurationError as error:
                if name not in self._proven:
                    raise
                logger.error("%s; requests for it are refused from now on", error)  # noqa: TRY400
                self._remove(name)

    async def load(self, llm: "AsyncLLM | None", name: str, path: str) -> None:
        """Load one more adapter, now or at the next start of an engine that is down.

        Raises ConfigurationError.
        """
        if name in self._requests:
            raise ConfigurationError(f"there is an adapter {name!r}, from {self._requests[name][1]}; unload it first")
        if not self.enabled:
            raise ConfigurationError("the engine was started without room for adapters; start it with the engine argument enable_lora=true")
        await anyio.to_thread.run_sync(_rank, name, path)
        if llm is None:
            self._add(name, path)
            self._proven.add(name)
            return
        lora_config = llm.vllm_config.lora_config
        if lora_config is not None and llm.vllm_config.device_config.device_type == "cpu":
            _check_places(len(self._requests) + 1, lora_config.max_loras)
        self._add(name, path)
        try:
            await self._load(llm, name)
        except BaseException:
            self._remove(name)
            raise

    async def unload(self, llm: "AsyncLLM | None", name: str) -> None:
        """Forget an adapter, which vLLM loads again for requests that have started. Raises EngineError."""
        number = self._remove(name)
        if llm is not None and number is not None:
            try:
                await llm.remove_lora(number)
            except Exception as error:
                raise translate(error) from error

    def _add(self, name: str, path: str) -> None:
        # A number is never used again.
        self._last += 1
        self._requests[name] = self._last, path
        self.names = tuple(self._requests)

    def _remove(self, name: str) -> int | None:
        """Forget an adapter; return its number, or None if it was given up at a start."""
        number, _ = self._requests.pop(name, (None, ""))
        self.names = tuple(self._requests)
        return number

    async def _load(self, llm: "AsyncLLM", name: str) -> None:
        request = self.request(name, "")
        assert request is not None
        try:
            await llm.add_lora(request)
        except Exception as error:
            if llm.errored:
                raise translate(error) from error
            raise ConfigurationError(f"the adapter {name!r} cannot be loaded from {request.lora_path}: {error}") from error
        self._proven.add(name)


def _check_places(count: int, places: int) -> None:
    if places < count + 1:
        raise ConfigurationError(f"max_loras is {places}; on a CPU it must be {count + 1}, one more than there are adapters")


def _rank(name: str, path: str) -> int:
    """Return the rank from the adapter's file, or vLLM's default for a hub name.

    vLLM reads the file of a hub name when it loads the adapter.
    """
    if not Path(path).exists():
        if path.startswith(("/", ".")):
            raise ConfigurationError(f"there is no folder {path} for the adapter {name!r}")
        return DEFAULT_RANK
    try:
        return int(json.loads(Path(path, "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"there is no adapter {name!r} in {path}: adapter_config.json: {error}") from None
