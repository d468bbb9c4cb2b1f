"""The figures of a vLLM engine. Written against vLLM 0.25.1, 0.32.0 and 0.33.0."""

from typing import TYPE_CHECKING

from llmserve.engine import EngineInfo
from llmserve.engines.vllm.args import version
from llmserve.engines.vllm.rendering import has_chat_template

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def describe(llm: "AsyncLLM", model: str, adapters: tuple[str, ...]) -> EngineInfo:
    """Return the figures of an engine that is up. Blocks."""
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
        kv_cache_tokens=None if cache is None else cache * cores,
        prefix_caching=bool(config.cache_config.enable_prefix_caching),
        has_chat_template=has_chat_template(llm.get_tokenizer()),
        adapters=adapters,
    )
