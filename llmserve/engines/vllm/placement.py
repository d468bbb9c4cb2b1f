"""Which GPUs or CPU cores each engine of a pool gets, and how its processes learn of them.

Engines on one GPU share its memory, and load one after another: vLLM measures what its model needs,
and fails if another process allocates at the same time. Engines on GPUs of their own load at the
same time. Written against vLLM 0.25.1 and 0.32.0.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from llmserve.engines.vllm.args import has_gpu_build
from llmserve.errors import ConfigurationError
from llmserve.runtime.cpus import physical_cores
from llmserve.runtime.gpus import VISIBLE, visible_gpus

T = TypeVar("T")

# Their product is the number of workers of one engine; each has a GPU, or CPU cores.
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size", "data_parallel_size")
# The variable with the CPU cores of each worker on vLLM's CPU build, separated by "|".
CORES = "VLLM_CPU_OMP_THREADS_BIND"
# Seconds between two checks whether a start that waits for its GPU is still wanted.
LOOK_SECONDS = 0.05


@attrs.frozen(kw_only=True)
class Placement:
    """The place of one engine.

    Attributes:
        number: the engine's number in its pool, from 0.
        environment: variables of the engine's processes.
        sharing: number of engines that share the memory of this engine's device.
        device: engines with the same name load one after another; None if it need not wait.
    """

    number: int = 0
    environment: Mapping[str, str] = attrs.field(factory=dict)
    sharing: int = 1
    device: str | None = None

    @contextmanager
    def loading(self, check: Callable[[], None], variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
        """Wait for the device, and give the cores that this thread starts inside their environment.

        `variables` are more of it.

        Raises what `check` raises, which is called while this waits.
        """
        _install()
        lock = _device(self.device)
        while not lock.acquire(timeout=LOOK_SECONDS):
            check()
        token = _environment.set({**self.environment, **variables})
        try:
            yield
        finally:
            _environment.reset(token)
            lock.release()


# The place of an engine that has every device to itself.
ALONE = Placement()


def place(args: Mapping[str, Any], count: int) -> list[Placement]:
    """Return the places of `count` engines with the same arguments. Raises ConfigurationError.

    An engine alone gets what vLLM gives it, as do engines whose processes Ray places.
    """
    if count == 1 or "ray" in (args.get("distributed_executor_backend"), args.get("data_parallel_backend")):
        return [Placement(number=number) for number in range(count)]
    if not has_gpu_build():
        return on_cpus(physical_cores(), workers(args), count, bound=CORES in os.environ)
    if args.get("device_ids"):
        raise ConfigurationError(f"device_ids is for one engine: with engines={count}, set {VISIBLE} to the GPUs of all engines")
    return on_gpus(visible_gpus(), workers(args), count)


def workers(args: Mapping[str, Any]) -> int:
    """Return the number of workers of one engine. Raises ConfigurationError."""
    try:
        return math.prod(int(args.get(name, 1)) for name in PARALLEL_SIZES)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{', '.join(PARALLEL_SIZES)} must be whole numbers: {error}") from error


def on_gpus(gpus: Sequence[str], size: int, count: int) -> list[Placement]:
    """Place engines that take `size` GPUs each. Only engines with one GPU share it."""
    if size > 1 and count * size > len(gpus):
        words = f"engines={count} with {size} GPUs each needs {count * size} GPUs"
        raise ConfigurationError(f"{words}, and {len(gpus)} can be used: lower engines, or {' or '.join(PARALLEL_SIZES)}")
    if not gpus:
        raise ConfigurationError(f"engines={count} needs a GPU, and the driver reports none; set {VISIBLE} if there is one")
    names = [",".join(gpus[first : first + size]) for first in range(0, len(gpus) - size + 1, size)]
    mine = [names[number % len(names)] for number in range(count)]
    return [
        Placement(number=number, environment={VISIBLE: name}, sharing=mine.count(name), device=name if mine.count(name) > 1 else None)
        for number, name in enumerate(mine)
    ]


def on_cpus(cores: Sequence[int], size: int, count: int, *, bound: bool) -> list[Placement]:
    """Place engines with `size` workers each on CPU cores; `bound` says that the operator did so.

    The last core of a worker that has several is left to the engine's other processes, as vLLM does
    for one engine.
    """
    if bound:
        return [Placement(number=number, sharing=count) for number in range(count)]
    lists = [",".join(map(str, part[:-1] or part)) for part in _split(cores, count * size)]
    return [
        Placement(number=number, environment={CORES: "|".join(lists[number * size : (number + 1) * size])}, sharing=count)
        for number in range(count)
    ]


def _split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Split into parts of equal size, or of one item that several parts share if there are too few."""
    if len(items) < parts:
        return [[items[number % len(items)]] for number in range(parts)]
    return [items[number * len(items) // parts : (number + 1) * len(items) // parts] for number in range(parts)]


_lock = threading.Lock()
# Locks of the devices that several engines share.
_devices: dict[str, threading.Lock] = {}
# Held while the environment has an engine's variables.
_spawning = threading.Lock()
_environment: ContextVar[Mapping[str, str]] = ContextVar("environment")
# vLLM's classes that start an engine's cores and have been changed by `_install`.
_changed: set[type] = set()


def _device(name: str | None) -> threading.Lock:
    with _lock:
        return threading.Lock() if name is None else _devices.setdefault(name, threading.Lock())


def _install() -> None:
    """Make vLLM start cores with the environment of this thread's placement. Idempotent.

    Between the start of an engine and that of its cores, vLLM reads a configuration and a tokenizer
    for seconds. The environment changes only while the cores start, for milliseconds, so that other
    engines and the host do not see it.
    """
    from vllm.v1.engine.utils import CoreEngineProcManager

    with _lock:
        if CoreEngineProcManager not in _changed:
            CoreEngineProcManager.__init__ = _placed(CoreEngineProcManager.__init__)
            _changed.add(CoreEngineProcManager)


def _placed(start: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor that starts an engine's cores, in the environment of its placement."""

    @wraps(start)
    def start_placed(*args: Any, **kwargs: Any) -> None:
        with _spawning, _variables(_environment.get({})):
            start(*args, **kwargs)

    return start_placed


@contextmanager
def _variables(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
