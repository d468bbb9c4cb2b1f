"""vLLM's log in a program that embeds it: errors alone, unless the program or its user has chosen otherwise."""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LEVEL, WARNINGS = "VLLM_LOGGING_LEVEL", "PYTHONWARNINGS"
# Each of them is a choice of the user's (vllm/envs.py).
CHOICES = (LEVEL, "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH")


@functools.cache
def is_chosen() -> bool:
    """Whether the environment, or a level of the logger "vllm", says what is logged. Asked once: importing vLLM sets that level."""
    return any(name in os.environ for name in CHOICES) or logging.getLogger("vllm").level != logging.NOTSET


@contextmanager
def quiet() -> Iterator[None]:
    """While vLLM is imported and its processes start, which inherit the environment. Afterwards the environment is as before."""
    if is_chosen():
        yield
        return
    # vLLM's warnings are about settings of its own and of ours, a dozen at each start. The engine's processes alone read PYTHONWARNINGS.
    chosen = {LEVEL: "ERROR", WARNINGS: os.environ.get(WARNINGS, "ignore::FutureWarning")}
    before = os.environ.get(WARNINGS)
    os.environ |= chosen
    try:
        yield
    finally:
        os.environ.pop(LEVEL, None)
        if before is None:
            os.environ.pop(WARNINGS, None)
