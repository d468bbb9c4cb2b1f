"""What the GPUs of this machine are doing, by NVIDIA's own library: memory, utilisation, power and temperature at the time of a scrape."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

# A name, its help, and how the library is asked; memory in bytes, utilisation as a share of the time, power in watts.
READINGS: tuple[tuple[str, str, Callable[[Any, Any], float]], ...] = (
    ("memory_used_bytes", "Memory in use, by whatever process.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ("memory_total_bytes", "Memory that there is.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    ("utilization", "Share of the time that something ran on it.", lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
    ("power_watts", "Power drawn.", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    ("temperature_celsius", "Temperature of the chip.", lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, 0)),
)


class GPUCollector:
    """A `prometheus_client` collector; of no GPU, or without llmserve[telemetry], of nothing. Only the GPUs that this process may use
    (CUDA_VISIBLE_DEVICES) are told of."""

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.core import GaugeMetricFamily

        nvml, gpus = _gpus()
        for name, text, read in READINGS:
            family = GaugeMetricFamily(f"llmserve_gpu_{name}", text, labels=["gpu", "name"])
            for label, model, gpu in gpus:
                # Not every card tells everything, and one may fall off the bus.
                with suppress(nvml.NVMLError):
                    family.add_metric([label, model], read(nvml, gpu))
            if family.samples:
                yield family


def library() -> Any:
    """NVIDIA's library, initialised, or None where there is no GPU of theirs."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        # Not installed, no driver, no device: pynvml has an error of its own for each.
        return None
    return pynvml


@cache
def _gpus() -> tuple[Any, list[tuple[str, str, Any]]]:
    """The library, and each GPU's number or UUID, model and handle."""
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
