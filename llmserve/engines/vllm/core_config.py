"""vLLM's configuration of an engine core, with CUDA graphs for every batch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmserve.engines.vllm.args import build_engine_args

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

# The largest batch that gets a CUDA graph by default, which is vLLM's own limit on Blackwell, and
# the distance between the sizes of large graphs.
LARGEST_GRAPH, GRAPH_STEP = 1024, 16


def build_config(model: str, given: Mapping[str, Any], sharing: int, clients: int | None = None) -> "VllmConfig":
    """Build the configuration from engine arguments.

    Args:
        model: A resolved model.
        given: vLLM's arguments, by name.
        sharing: Number of engines that share a device's memory.
        clients: Number of client processes of the core; None if the core has its client in this
            process.

    Raises ConfigurationError for wrong arguments, and vLLM's own errors.
    """
    from vllm.usage.usage_lib import UsageContext

    args = build_engine_args(model, given, sharing)
    if clients is not None:
        args._api_process_count = clients  # noqa: SLF001 - as vLLM's own launcher does
        args._api_process_rank = -1  # noqa: SLF001 - vLLM has no public name for it
    # vLLM's defaults depend on the usage context: on an H200 a step holds 8192 tokens for its API
    # server and 2048 for an unknown embedder. With 2048, 128 streams of a 1.5B model left requests
    # waiting for prefill (docs/benchmarks.md).
    context = UsageContext.OPENAI_API_SERVER
    config = args.create_engine_config(context)
    size = graph_size(args, config)
    if size is not None:
        args.max_cudagraph_capture_size = size
        config = args.create_engine_config(context)
    return config


def graph_size(args: "AsyncEngineArgs", config: "VllmConfig") -> int | None:
    """Return the largest CUDA graph that the engine should have; None to leave it to vLLM.

    On most GPUs vLLM has graphs for up to 512 sequences, takes up to 1,024, and computes the
    larger batches without a graph, at half of the tokens per second (docs/scaling.md).
    """
    given, graphs = args.compilation_config, config.compilation_config
    chosen = (
        args.max_cudagraph_capture_size,
        args.cudagraph_capture_sizes,
        given.max_cudagraph_capture_size,
        given.cudagraph_capture_sizes,
    )
    # A step of speculative decoding has several tokens for each sequence, for which vLLM chooses
    # sizes of its own.
    if any(value is not None for value in chosen) or config.speculative_config is not None:
        return None
    sequences = min(int(config.scheduler_config.max_num_seqs), LARGEST_GRAPH)
    if not 0 < (graphs.max_cudagraph_capture_size or 0) < sequences:
        return None
    return -(-sequences // GRAPH_STEP) * GRAPH_STEP
