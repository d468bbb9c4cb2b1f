"""The machine: memory and CPU of the server's processes, its GPUs, and its hardware."""

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
    """Return the resident bytes of the live processes; shared memory counts in each of them."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


@attrs.define
class Machine:
    """Gauges of some processes and of all visible GPUs; None where there is none.

    Reading them takes about a millisecond.
    """

    processes: Sequence[psutil.Process] = ()
    _library: Any = attrs.field(factory=nvml.library)

    def watch_own_processes(self) -> None:
        """Watch this process and its children so far: the engine's, if generators start later."""
        own = psutil.Process()
        self.processes = [own, *own.children(recursive=True)]

    def rss(self) -> int | None:
        """Return the resident bytes of the live processes."""
        return resident(self.processes) or None

    def engine_cpu(self) -> float | None:
        """Return the CPU seconds of the busiest process besides this one, since its start."""
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
        """Return the used bytes of all GPUs, by any process."""
        devices = self._devices()
        return sum(int(self._library.nvmlDeviceGetMemoryInfo(device).used) for device in devices) if devices else None

    def gpu(self) -> float | None:
        """Return the mean share of time in which a GPU ran a kernel, over NVML's window."""
        devices = self._devices()
        if not devices:
            return None
        return float(sum(self._library.nvmlDeviceGetUtilizationRates(device).gpu for device in devices)) / 100 / len(devices)

    def energy(self) -> float | None:
        """Return the joules that all GPUs have used since their driver started; None if one does not report it."""
        devices = self._devices()
        try:
            return sum(int(self._library.nvmlDeviceGetTotalEnergyConsumption(device)) for device in devices) / 1000 if devices else None
        except self._library.NVMLError:
            # Cards older than Volta, and virtual ones.
            return None

    def describe(self) -> dict[str, Any]:
        """Describe the machine for a run's provenance."""
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
    """Decode text, which older NVML bindings return as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
