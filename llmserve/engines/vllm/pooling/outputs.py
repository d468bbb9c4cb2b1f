"""Converts requests for vectors to vLLM's parameters, and its tensors to bytes.

Written against vLLM 0.25.1, 0.32.0 and 0.33.0.
"""

from typing import Any

from llmserve.engine import EnginePrompt, EngineTimings
from llmserve.engines.vllm.args import numbers
from llmserve.engines.vllm.outputs import Receiver, translate
from llmserve.errors import EngineError
from llmserve.pooling.requests import Pooling
from llmserve.pooling.vectors import Pooled

# The first version that takes the second text's end as well. Its engine ends at a request without it.
ENDS_SINCE = (0, 33)


def pooling_params(pooling: Pooling, prompt: EnginePrompt) -> Any:
    """Return PoolingParams."""
    from vllm import PoolingParams, __version__

    params = PoolingParams(task=pooling.task, dimensions=pooling.dimensions, use_activation=pooling.activation)
    if pooling.second is not None:
        params.extra_kwargs = {"compressed_token_type_ids": second_text(pooling.second, len(prompt.token_ids), __version__)}
    return params


def second_text(first: int, end: int, version: str) -> int | tuple[int, int]:
    """Return the place of a pair's second text, from its `first` token to before `end`, as a version of vLLM takes it."""
    return (first, end) if numbers(version) >= ENDS_SINCE else first


class VectorReceiver(Receiver):
    """Passes on a request's one output, with its vector."""

    def put(self, output: Any) -> None:
        if self._id not in self._open:
            return
        self._open.discard(self._id)
        if isinstance(output, Exception):
            self._sink.fail(translate(output))
            return
        if (error := getattr(output, "error", None)) is not None:
            self._sink.fail(EngineError(f"the engine failed the request: {error}"))
            return
        data = output.outputs.data
        if not data.numel():
            # Only a request that vLLM has aborted has no elements.
            self._dropped(self._sink)
            return
        vector = data.float().contiguous().numpy().tobytes()
        self._sink.put(Pooled("", (), "stop", data=vector), EngineTimings(cached_tokens=output.num_cached_tokens or 0))
