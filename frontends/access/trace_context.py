"""W3C Trace Context: the trace that a client's request belongs to."""

from collections.abc import Callable, Mapping, Sequence

# A `traceparent` of version 0 has 55 characters. W3C requires no more than 512 characters of a
# `tracestate` to be passed on.
TRACE_HEADERS = ("traceparent", "tracestate")
MAX_VALUE = 512


def trace_of(values: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return a request's trace headers; `values` gives all values of a header.

    Headers that are not well-formed count as not sent, as W3C requires.
    """
    found = {name: ",".join(values(name)) for name in TRACE_HEADERS}
    if not 55 <= len(found["traceparent"]) <= MAX_VALUE or not found["traceparent"].isascii():
        return {}
    return {name: value for name, value in found.items() if 0 < len(value) <= MAX_VALUE and value.isascii()}


def trace_of_mapping(values: Mapping[str, str]) -> dict[str, str]:
    """Return a request's trace headers from a mapping with one value per name."""
    return trace_of(lambda name: [values[name]] if name in values else [])
