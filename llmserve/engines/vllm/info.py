"""The figures and the vocabulary of a vLLM engine. Written against vLLM 0.25.1, 0.32.0 and 0.33.0."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from llmserve.engine import EngineInfo
from llmserve.engines.vllm.args import version
from llmserve.engines.vllm.pooling.tasks import pooling_info
from llmserve.engines.vllm.rendering import has_chat_template
from llmserve.engines.vllm.scheduling.step_limit import StepLimit
from llmserve.errors import InvalidRequest
from llmserve.images.parts import MAX_IMAGES

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def describe(llm: "AsyncLLM", model: str, tasks: Collection[str], limit: StepLimit) -> EngineInfo:
    """Return the figures of an engine that is up, and of its tasks. Blocks."""
    from vllm.platforms import current_platform

    config = llm.vllm_config
    # The cores to which this client sends requests. With a load balancer outside vLLM there are
    # others.
    cores, cache = len(llm.engine_core.engine_ranks_managed), config.cache_config.kv_cache_size_tokens
    return EngineInfo(
        name="vllm",
        version=version(),
        model=model,
        device=current_platform.get_device_name() or current_platform.device_type,
        max_model_len=llm.model_config.max_model_len,
        vocab_size=llm.model_config.get_vocab_size(),
        # vLLM reports these figures for each core.
        max_num_seqs=config.scheduler_config.max_num_seqs * cores,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens * cores,
        min_step_tokens=limit.least(config),
        kv_cache_tokens=None if cache is None else cache * cores,
        prefix_caching=bool(config.cache_config.enable_prefix_caching),
        has_chat_template=has_chat_template(llm.get_tokenizer()),
        max_images=_max_images(llm),
        **pooling_info(llm.model_config, tasks),
    )


def _max_images(llm: "AsyncLLM") -> int:
    processor = llm.renderer.mm_processor
    if processor is None or llm.model_config.is_encoder_decoder:
        return 0
    limits = processor.info.allowed_mm_limits
    # Models that take images and videos as one kind of input have one limit for both.
    return min(MAX_IMAGES, int(limits.get("image", limits.get("vision_chunk", 0))))


class Vocabulary(ABC):
    """The calls to a running engine that are about its tokenizer's vocabulary."""

    @property
    @abstractmethod
    def info(self) -> EngineInfo: ...

    @property
    @abstractmethod
    def running_llm(self) -> "AsyncLLM":
        """The AsyncLLM, for what this adapter does not offer. Raises EngineDead if it is down."""

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        ids, tokenizer = _checked(token_ids, self.info.vocab_size), self.running_llm.get_tokenizer()
        return str(await anyio.to_thread.run_sync(tokenizer.decode, ids))

    async def token_strings(self, token_ids: tuple[int, ...]) -> list[str]:
        ids, tokenizer = _checked(token_ids, self.info.vocab_size), self.running_llm.get_tokenizer()
        return list(await anyio.to_thread.run_sync(tokenizer.convert_ids_to_tokens, ids))

    async def tokenizer_info(self) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(tokenizer_settings, self.running_llm.get_tokenizer())


def _checked(token_ids: Sequence[int], size: int) -> list[int]:
    """Return the ids as a list. Raises InvalidRequest for an id outside a vocabulary of `size`."""
    if any(not 0 <= token < size for token in token_ids):
        raise InvalidRequest(f"a token id is outside the vocabulary of {size}", "tokens")
    return list(token_ids)


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """Return the settings that a Hugging Face tokenizer was made with, without paths of files."""
    found = {name: _plain(value) for name, value in getattr(tokenizer, "init_kwargs", {}).items() if not name.endswith(("_file", "_path"))}
    template = getattr(tokenizer, "chat_template", None)
    return found | {"tokenizer_class": type(tokenizer).__name__} | ({} if template is None else {"chat_template": template})


def _plain(value: Any) -> Any:
    """Return a value that JSON has: a special token is an object with its text as `content`."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else str(getattr(value, "content", value))
