"""What a vLLM model does, and the sizes and labels of its vectors.

Written against vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

from collections.abc import Collection
from typing import Any

from llmserve.errors import ConfigurationError
from llmserve.pooling.requests import CLASSIFY, EMBED, GENERATE


def pooling_info(config: Any, supported: Collection[str]) -> dict[str, Any]:
    """Return the fields of `EngineInfo` about tasks.

    Args:
        config: vLLM's ModelConfig.
        supported: The tasks that vLLM's engine reports.

    Raises ConfigurationError if the model does none of the tasks that this library knows.
    """
    tasks = tuple(task for task in (GENERATE, EMBED, CLASSIFY) if task in supported)
    if not tasks:
        words = f"the model neither generates nor makes one vector of a prompt: vLLM reports {', '.join(sorted(supported)) or 'no tasks'}"
        raise ConfigurationError(f"{words}, and generate, embed and classify are supported")
    found: dict[str, Any] = {"tasks": tasks}
    if EMBED in tasks:
        size = int(getattr(config, "embedding_size", None) or config.get_hidden_size())
        found["embedding_size"] = size
        if config.is_matryoshka:
            found["dimensions"] = tuple(config.matryoshka_dimensions or ()) or range(1, size + 1)
    if CLASSIFY in tasks:
        names = getattr(config.hf_config, "id2label", None) or {}
        found["labels"] = tuple(str(names[number]) for number in sorted(names))
    return found


def has_pair_template(config: Any) -> bool:
    """Whether a classifier reads a pair in a form of its own. Imports the model's class."""
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.model_executor.models.interfaces import supports_score_template

    return bool(supports_score_template(get_model_cls(config)))
