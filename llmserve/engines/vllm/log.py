"""Limits vLLM's log to errors, unless the embedding program or its user has chosen otherwise."""

import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LEVEL, WARNINGS = "VLLM_LOGGING_LEVEL", "PYTHONWARNINGS"
# Each of these variables is a choice of the user (vllm/envs.py).
CHOICES = (LEVEL, "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH")
# vLLM's warnings are about its own settings and ours, a dozen at each start. Only the engine's
# processes read PYTHONWARNINGS.
QUIET = {LEVEL: "ERROR", WARNINGS: "ignore::FutureWarning"}


def is_chosen() -> bool:
    """Whether the environment, or a level of the logger "vllm", determines what is logged."""
    return _has_level() or any(name in os.environ for name in CHOICES)


@functools.cache
def _has_level() -> bool:
    """Check this once, because importing vLLM sets the level."""
    return logging.getLogger("vllm").level != logging.NOTSET


class _Starts:
    """Counts overlapping starts, which run in threads.

    The first one sets the variables, and the last one removes them.
    """

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
                    # The program may have set another value during the start.
                    if os.environ.get(name) == QUIET[name]:
                        del os.environ[name]


_starts = _Starts()


@contextmanager
def quiet() -> Iterator[None]:
    """Quiet vLLM while it is imported and its processes start, which inherit the environment.

    Afterwards the environment is restored.
    """
    _starts.begin()
    try:
        yield
    finally:
        _starts.end()
