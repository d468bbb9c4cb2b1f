"""When requests are meant to be sent. Pure: seconds from the start, no clock, every random choice from a seed.

An open loop's times are absolute and never move: a generator that falls behind sends late, and its lateness shows in every
figure that counts from the intended send. (Re-anchoring to "now" would hide a stall of the server from its own measurement.)
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence


def constant(rate: float) -> Iterator[float]:
    """Exactly every 1/rate seconds, beginning at 0."""
    return (number / rate for number in itertools.count())


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Independent arrivals at `rate` a second: exponential gaps."""
    return gamma(rate, 1.0, seed)


def gamma(rate: float, shape: float, seed: int) -> Iterator[float]:
    """Gamma-distributed gaps with a mean of 1/rate: bursty below a shape of 1, Poisson at 1, regular far above."""
    rng = random.Random(f"arrivals {seed}")
    now = 0.0
    while True:
        now += rng.gammavariate(shape, 1 / (rate * shape))
        yield now


def ramp(first: float, last: float, seconds: float) -> Iterator[float]:
    """A rate that grows (or falls) linearly from `first` to `last` a second over `seconds`, without randomness, then ends.

    The n-th arrival is where the rate's integral reaches n: first*t + (last - first)*t^2/(2*seconds) = n.
    """
    slope = (last - first) / seconds
    for number in range(int((first + last) / 2 * seconds) + 1):
        # The quadratic's root in the form that loses no digits, however flat the ramp is.
        yield 2 * number / (first + math.sqrt(max(0.0, first * first + 2 * slope * number)))


def steps(stairs: Sequence[tuple[float, float]], seed: int) -> Iterator[float]:
    """Poisson arrivals whose rate jumps: `stairs` are (rate, seconds), one after another, then it ends; a rate of 0 is a pause."""
    begin = 0.0
    for number, (rate, seconds) in enumerate(stairs):
        if rate > 0:
            for time in itertools.takewhile(lambda time, end=seconds: time < end, gamma(rate, 1.0, seed + 1000 * number)):  # type: ignore[misc]
                yield begin + time
        begin += seconds
