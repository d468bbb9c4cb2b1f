"""The GPUs that this process may use, found without initialising CUDA, which a process does only once."""

import ctypes
import os
from contextlib import suppress

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """Return the GPUs' names for CUDA_VISIBLE_DEVICES: numbers, or UUIDs if the variable has them."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return [str(number) for number in range(_count())]
    names = [name.strip() for name in given.split(",")]
    # CUDA stops at the first name that is invalid; -1 and the empty name are the usual ones.
    last = next((number for number, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:last]


def _count() -> int:
    """Count the GPUs with NVML, which NVIDIA's driver brings with it; 0 without the driver."""
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            number = ctypes.c_uint()
            found = nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
            nvml.nvmlShutdown()
            return number.value if found == 0 else 0
    return 0
