"""The memory of a program that serves: what the C library and the garbage collector do with it."""

import ctypes
import gc

# glibc has it; other C libraries return the pages by themselves.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_free_pages() -> None:
    """Give the pages that the C library keeps between others back to the system: 110 MiB after eight of the largest answers. It takes some
    milliseconds after megabytes were freed."""
    if _trim is not None:
        _trim(0)


def set_modules_aside() -> None:
    """Let the garbage collector leave alone what the program has imported, which it otherwise looks through for 20 to 50 ms at a time,
    while no stream gets a token. An engine of vLLM sets its own objects aside when it is up."""
    gc.collect()
    gc.freeze()
