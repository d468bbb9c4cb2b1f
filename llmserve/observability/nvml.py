"""Memory, utilisation, power and temperature of this machine's GPUs, from NVIDIA's NVML."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric


def _utilization(nvml: Any, gpu: Any) -> float:
    return float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)


# Each reading has a name, a help text and a function. Memory is in bytes, utilisation is a share of
# time, power is in watts.
READINGS: tuple[tuple[str, str, Callable[[Any, Any], float]], ...] = (
    ("memory_used_bytes", "Memory in use by all processes.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ("memory_total_bytes", "Total memory.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    ("utilization", "Share of time in which the GPU was busy.", _utilization),
    ("power_watts", "Power drawn.", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    ("temperature_celsius", "Temperature of the chip.", lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, 0)),
)


class GPUCollector:
    """A `prometheus_client` collector for the GPUs that the process may use (CUDA_VISIBLE_DEVICES).

    It has no metrics without a GPU or without llmserve[telemetry].
    """

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.core import GaugeMetricFamily

        nvml, gpus = _gpus()
        for name, text, read in READINGS:
            family = GaugeMetricFamily(f"llmserve_gpu_{name}", text, labels=["gpu", "name"])
            for label, model, gpu in gpus:
                # Not every card supports every reading, and a card may fall off the bus.
                with suppress(nvml.NVMLError):
                    family.add_metric([label, model], read(nvml, gpu))
            if family.samples:
                yield family


def library() -> Any:
    """Return NVML, initialised, or None if this machine has no NVIDIA GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        # pynvml has separate errors for a missing package, driver or device.
        return None
    return pynvml


def utilizations() -> list[float]:
    """Return the share of time in which each visible GPU was busy; empty if none reports it."""
    nvml, gpus = _gpus()
    found = []
    for _, _, gpu in gpus:
        with suppress(nvml.NVMLError):
            found.append(_utilization(nvml, gpu))
    return found


@cache
def _gpus() -> tuple[Any, list[tuple[str, str, Any]]]:
    """Return the library, and each GPU's number or UUID, model and handle."""
    nvml = library()
    if nvml is None:
        return None, []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(nvml.nvmlDeviceGetCount())] if visible is None else visible.split(",")
    found = []
    for name in filter(None, map(str.strip, names)):
        with suppress(nvml.NVMLError):
            gpu = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
            found.append((name, str(nvml.nvmlDeviceGetName(gpu)), gpu))
    return nvml, found
