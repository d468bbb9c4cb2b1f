"""The C library's heap. It keeps the pages that were freed between others: 110 MiB after eight of the largest answers."""

import ctypes

# glibc has it; other C libraries return the pages by themselves.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_free_pages() -> None:
    """Give them back to the system. It takes some milliseconds after megabytes were freed."""
    if _trim is not None:
        _trim(0)
