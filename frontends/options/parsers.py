"""Converts the texts of options that several components have."""

import argparse
import math
from collections.abc import Callable

AUTO = "auto"


def count(text: str) -> int:
    """Parse an integer of at least 1. Raises ArgumentTypeError, ValueError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def count_or_none(text: str) -> int:
    """Parse an integer of at least 0. Raises ArgumentTypeError, ValueError."""
    return 0 if text == "0" else count(text)


def seconds(text: str) -> float:
    """Parse a number of seconds of at least 0. Raises ArgumentTypeError, ValueError."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of seconds: use 0 or more")
    return number


def auto_or_count(what: str) -> Callable[[str], str]:
    """Return the parser of a number of `what` of at least 1, or auto. It raises ArgumentTypeError."""

    def parse(text: str) -> str:
        if text != AUTO and (not text.isdigit() or int(text) < 1):
            raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of {what}: use auto, 1 or more")
        return text

    return parse
