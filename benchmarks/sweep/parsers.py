"""Parsers of the values of the options; each raises argparse.ArgumentTypeError with one line."""

import argparse
import math

from benchmarks.workload.requests import Distribution, Lengths, parse_lengths
from benchmarks.workload.think_time import ThinkTime, parse_think_time


def lengths(text: str) -> Distribution:
    try:
        return parse_lengths(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def many_lengths(text: str) -> list[Lengths]:
    return [lengths(part) for part in text.split(",")]


def think_time(text: str) -> ThinkTime:
    try:
        return parse_think_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def adapters(text: str) -> tuple[tuple[str, float], ...]:
    """Parse `NAME:SHARE,...`, where the shares add up to at most 1."""
    try:
        found = tuple((name, float(share)) for name, share in (part.rsplit(":", 1) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or len(dict(found)) < len(found) or not all(name and 0 < share <= 1 for name, share in found):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME:SHARE,... with different names and shares above 0, such as a:0.5,b:0.3")
    if sum(share for _, share in found) > 1 + 1e-9:
        raise argparse.ArgumentTypeError(f"{text!r}: the shares add up to more than 1")
    return found


def span(text: str) -> tuple[float, float]:
    """Parse `FIRST:LAST`, the rates of a ramp."""
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write FIRST:LAST") from None
    if not (math.isfinite(first + last) and first >= 0 and last >= 0 and first + last > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: rates must be 0 or more, and not both 0")
    return first, last


def stairs(text: str) -> tuple[tuple[float, float], ...]:
    """Parse `RATE:SECONDS,RATE:SECONDS,...`."""
    try:
        found = tuple((float(rate), float(seconds)) for rate, seconds in (part.split(":") for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write RATE:SECONDS,RATE:SECONDS,...") from None
    if not all(math.isfinite(rate + seconds) and rate >= 0 and seconds > 0 for rate, seconds in found) or not any(
        rate for rate, _ in found
    ):
        raise argparse.ArgumentTypeError(f"{text!r}: rates must be 0 or more and one of them above 0; seconds must be above 0")
    return found
