"""vLLM's log in a program that embeds it: errors alone, unless the program or its user has chosen otherwise."""

import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LEVEL, WARNINGS = "VLLM_LOGGING_LEVEL", "PYTHONWARNINGS"
# Each of them is a choice of the user's (vllm/envs.py).
CHOICES = (LEVEL, "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH")
# vLLM's warnings are about settings of its own and of ours, a dozen at each start. The engine's processes alone read PYTHONWARNINGS.
QUIET = {LEVEL: "ERROR", WARNINGS: "ignore::FutureWarning"}


def is_chosen() -> bool:
    """Whether the environment, or a level of the logger "vllm", says what is logged."""
    return _has_level() or any(name in os.environ for name in CHOICES)


@functools.cache
def _has_level() -> bool:
    """Asked once: importing vLLM sets that level."""
    return logging.getLogger("vllm").level != logging.NOTSET


class _Starts:
    """Starts run in threads, and several may overlap: the first one sets the variables, the last one removes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._set: tuple[str, ...] = ()

    def begin(self) -> None:
        with self._lock:
            if self._running == 0:
                self._set = () if is_chosen() else tuple(name for name in QUIET if name not in os.environ)
                os.environ |= {name: QUIET[name] for name in self._set}
            self._running += 1

    def end(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0:
                for name in self._set:
                    # The program may have chosen another value while the start ran.
                    if os.environ.get(name) == QUIET[name]:
                        del os.environ[name]


_starts = _Starts()


@contextmanager
def quiet() -> Iterator[None]:
    """While vLLM is imported and its processes start, which inherit the environment. Afterwards the environment is as before."""
    _starts.begin()
    try:
        yield
    finally:
        _starts.end()
