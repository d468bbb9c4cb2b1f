"""How long a client thinks between an answer and its next turn. Pure and seeded."""

import math
import random
from typing import Literal, cast, get_args

import msgspec

Form = Literal["exact", "exponential", "normal", "lognormal"]


class ThinkTime(msgspec.Struct, frozen=True):
    """A distribution of seconds.

    Attributes:
        mean: The mean of `exponential` and `normal`, the median of `lognormal`, or the time itself.
        spread: The standard deviation of `normal`, or of the logarithm of `lognormal`.
    """

    form: Form
    mean: float
    spread: float = 0.0

    def __str__(self) -> str:
        name = "" if self.form == "exact" else f"{self.form}:"
        return f"{name}{self.mean:g}{f':{self.spread:g}' if self.spread else ''} s"

    def draw(self, rng: random.Random) -> float:
        match self.form:
            case "exponential":
                return rng.expovariate(1 / self.mean)
            case "normal":
                return max(0.0, rng.gauss(self.mean, self.spread))
            case "lognormal":
                return self.mean * rng.lognormvariate(0.0, self.spread)
        return self.mean


def parse_think_time(text: str) -> ThinkTime:
    """Parse `2`, `exponential:MEAN`, `normal:MEAN:DEVIATION` or `lognormal:MEDIAN:SIGMA`. Raises ValueError."""
    name, *values = text.split(":") if ":" in text else ("exact", text)
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    expected = 1 if name in ("exact", "exponential") else 2
    valid = all(math.isfinite(number) for number in numbers) and len(numbers) == expected
    if name not in get_args(Form) or not valid or numbers[0] <= 0 or numbers[-1] < 0:
        raise ValueError(f"{text!r}: write seconds above 0 as 2, exponential:2, normal:2:0.5 or lognormal:2:0.6")
    return ThinkTime(cast("Form", name), *numbers)
