"""W3C's Trace Context: the trace that a client says its request is part of."""

from collections.abc import Callable, Mapping, Sequence

# W3C's Trace Context. A `traceparent` has 55 characters in its version 0, and nobody needs to pass on more than 512 of a `tracestate`.
TRACE_HEADERS = ("traceparent", "tracestate")
MAX_VALUE = 512


def trace_of(values: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """A request's trace headers, from all values that it has under a name. What is not well-formed counts as not sent, as W3C wants."""
    found = {name: ",".join(values(name)) for name in TRACE_HEADERS}
    if not 55 <= len(found["traceparent"]) <= MAX_VALUE or not found["traceparent"].isascii():
        return {}
    return {name: value for name, value in found.items() if 0 < len(value) <= MAX_VALUE and value.isascii()}


def trace_of_mapping(values: Mapping[str, str]) -> dict[str, str]:
    """The same where each name has one value."""
    return trace_of(lambda name: [values[name]] if name in values else [])
