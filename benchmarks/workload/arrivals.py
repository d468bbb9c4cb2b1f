"""When requests are due. Pure: seconds from the start, no clock, every random choice from a seed.

An open loop's times are absolute and never move. A generator that falls behind sends late, and the
lateness shows in every figure that counts from the intended send. Re-anchoring to "now" would hide
a stall of the server from its own measurement.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence


def constant(rate: float) -> Iterator[float]:
    """Yield a time every 1/rate seconds, beginning at 0."""
    return (number / rate for number in itertools.count())


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield independent arrivals at `rate` per second, with exponential gaps."""
    return gamma(rate, 1.0, seed)


def gamma(rate: float, shape: float, seed: int) -> Iterator[float]:
    """Yield arrivals with gamma-distributed gaps of mean 1/rate.

    A shape below 1 is bursty, 1 is Poisson, far above 1 is regular.
    """
    rng = random.Random(f"arrivals {seed}")
    now = 0.0
    while True:
        now += rng.gammavariate(shape, 1 / (rate * shape))
        yield now


def ramp(first: float, last: float, seconds: float) -> Iterator[float]:
    """Yield arrivals at a rate that changes linearly from `first` to `last` within `seconds`.

    There is no randomness. The n-th arrival is where the rate's integral reaches n:
    first*t + (last - first)*t^2/(2*seconds) = n.
    """
    slope = (last - first) / seconds
    for number in range(int((first + last) / 2 * seconds) + 1):
        # This form of the quadratic's root loses no digits, however flat the ramp is.
        yield 2 * number / (first + math.sqrt(max(0.0, first * first + 2 * slope * number)))


def steps(stairs: Sequence[tuple[float, float]], seed: int) -> Iterator[float]:
    """Yield Poisson arrivals at consecutive (rate, seconds); a rate of 0 is a pause."""
    begin = 0.0
    for number, (rate, seconds) in enumerate(stairs):
        if rate > 0:
            # mypy cannot infer the type of a lambda with a default.
            for time in itertools.takewhile(lambda time, end=seconds: time < end, gamma(rate, 1.0, seed + 1000 * number)):  # type: ignore[misc]
                yield begin + time
        begin += seconds
