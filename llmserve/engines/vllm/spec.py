"""What a program can learn about vLLM without importing it: its version, arguments and needs."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from llmserve.engine import Engine
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm import args as vllm_args
from llmserve.engines.vllm.placement import place, workers
from llmserve.runtime.gpus import visible_gpus


class VLLMSpec(EngineSpec):
    """vLLM, or its build for CPUs."""

    shares_core = True
    has_files = True

    def create(self, model: str, args: Mapping[str, Any]) -> Engine:
        from llmserve.engines.vllm.engine import VLLMEngine

        return VLLMEngine(model, args)

    def create_pool(self, model: str, args: Mapping[str, Any], count: int) -> list[Engine]:
        from llmserve.engines.vllm.engine import VLLMEngine

        return [VLLMEngine(model, args, placement) for placement in place(args, count)]

    def version(self) -> str | None:
        with suppress(ImportError):
            return vllm_args.version()
        return None

    def server_args(self, *, verbose: bool, trace_endpoint: str | None) -> dict[str, Any]:
        quiet = {} if verbose else {"use_tqdm_on_load": False}
        return quiet | ({"otlp_traces_endpoint": trace_endpoint} if trace_endpoint else {})

    def check_start(self, model: str, args: Mapping[str, Any]) -> None:
        from llmserve.engines.vllm.start_checks import check_host, check_model

        check_host()
        check_model(model, args)

    def gains_from_workers(self, args: Mapping[str, Any]) -> bool:
        # On a CPU, the engine is the limit.
        return vllm_args.has_gpu_build()

    def gpus(self, args: Mapping[str, Any]) -> int:
        return workers(args) if vllm_args.has_gpu_build() else 0

    def engines_that_fit(self, args: Mapping[str, Any]) -> int:
        return max(1, len(visible_gpus()) // workers(args)) if vllm_args.has_gpu_build() else 1
