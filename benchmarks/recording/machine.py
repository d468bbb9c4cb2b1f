"""What the machine says: memory and CPU of the server's processes, memory and use of its GPUs, and what it is made of."""

import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import attrs
import psutil

from llmserve.observability import nvml
from llmserve.runtime.cpus import available_cpus


def resident(processes: Iterable[psutil.Process]) -> int:
    """Bytes of those that still live; what they share is counted in each."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


@attrs.define
class Machine:
    """Gauges of some processes and of every GPU in sight; None where there is none. Reading them takes about a millisecond."""

    processes: Sequence[psutil.Process] = ()
    _library: Any = attrs.field(factory=nvml.library)

    def watch_own_processes(self) -> None:
        """This process and all that it has started so far: the engine's, if the generators are started later."""
        own = psutil.Process()
        self.processes = [own, *own.children(recursive=True)]

    def rss(self) -> int | None:
        """Resident bytes of the processes that still live."""
        return resident(self.processes) or None

    def engine_cpu(self) -> float | None:
        """Seconds of CPU that the busiest process beside this one has used since it began."""
        found = []
        for process in self.processes:
            try:
                if process.pid != os.getpid():
                    times = process.cpu_times()
                    found.append(float(times.user + times.system))
            except psutil.Error:
                continue
        return max(found, default=None)

    def vram(self) -> int | None:
        """Used bytes of all GPUs, whoever uses them."""
        devices = self._devices()
        return sum(int(self._library.nvmlDeviceGetMemoryInfo(device).used) for device in devices) if devices else None

    def gpu(self) -> float | None:
        """Share of time in which some kernel ran, over NVML's own window, as a mean over the GPUs."""
        devices = self._devices()
        if not devices:
            return None
        return float(sum(self._library.nvmlDeviceGetUtilizationRates(device).gpu for device in devices)) / 100 / len(devices)

    def describe(self) -> dict[str, Any]:
        """For a run's provenance."""
        devices = self._devices()
        return {
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "cpus": available_cpus(),
            "memory_bytes": psutil.virtual_memory().total,
            "load_average": os.getloadavg(),
            "kernel": platform.release(),
            "gpus": [_text(self._library.nvmlDeviceGetName(device)) for device in devices],
            "gpu_bytes": [int(self._library.nvmlDeviceGetMemoryInfo(device).total) for device in devices],
            "driver": _text(self._library.nvmlSystemGetDriverVersion()) if devices else None,
        }

    def _devices(self) -> list[Any]:
        library = self._library
        return [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())] if library else []


def _text(value: str | bytes) -> str:
    """Older NVML bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
