"""Running estimates: a linear relation of two quantities, and the recent step time."""

import math

import attrs


class LinearFit:
    """y = a + b x by least squares over recent samples, with a, b >= 0."""

    def __init__(self, memory: int = 200) -> None:
        self._fade = 1 - 1 / memory
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.a = self.b = 0.0

    def add(self, x: float, y: float) -> None:
        self.collect(x, y)
        self.solve()

    def collect(self, x: float, y: float) -> None:
        """Add a sample to the sums only. `solve` then finds the line."""
        fade = self._fade
        self._n = self._n * fade + 1
        self._x = self._x * fade + x
        self._y = self._y * fade + y
        self._xx = self._xx * fade + x * x
        self._xy = self._xy * fade + x * y

    def solve(self) -> None:
        """Find the line."""
        count = self._n
        mean_x, mean_y = self._x / count, self._y / count
        square = mean_x * mean_x
        spread = self._xx / count - square
        self.b = 0.0
        if spread > 1e-9 * (1 + square):
            slope = (self._xy / count - mean_x * mean_y) / spread
            # The line always goes through the mean. If it would start below 0, it starts at 0.
            self.b = min(max(slope, 0.0), mean_y / mean_x if mean_x > 0 else 0.0)
        self.a = mean_y - self.b * mean_x

    @property
    def ratio(self) -> float:
        """The slope of the line from the origin through the mean; 0 without samples."""
        return self._y / self._x if self._x else 0.0

    @property
    def learnt(self) -> bool:
        """Whether there are enough samples to report the line to an operator."""
        return self._n >= 64

    def at(self, x: float) -> float:
        return self.a + self.b * x


class FitWithError(LinearFit):
    """A line, and how far samples deviate from its predictions."""

    def __init__(self, memory: int = 200) -> None:
        super().__init__(memory)
        self._square = 0.0

    def add(self, x: float, y: float) -> None:
        if self._n >= 4:
            # The error of the previous line, which had not seen this sample.
            self._square = self._square * self._fade + (1 - self._fade) * (y - self.at(x)) ** 2
        super().add(x, y)

    @property
    def deviation(self) -> float:
        return math.sqrt(self._square)

    @property
    def relative_deviation(self) -> float:
        """The deviation relative to the mean; 0 without samples."""
        return self.deviation * self._n / self._y if self._y else 0.0


@attrs.define
class Recent:
    """Step times of about the last `seconds`, as sums in which old steps fade."""

    seconds: float = 1.0
    # Minimum number of steps to remember when steps are slow.
    at_least: int = 16
    time: float = 0.0
    steps: float = 0.0
    running: float = 0.0

    def add(self, seconds: float, steps: float, running: int) -> None:
        memory = max(self.seconds, self.at_least * seconds / steps) if steps else self.seconds
        fade = math.exp(-seconds / memory)
        self.time = self.time * fade + seconds
        self.steps = self.steps * fade + steps
        self.running = self.running * fade + running * steps

    @property
    def step(self) -> float | None:
        """Mean duration of a step in seconds."""
        return self.time / self.steps if self.steps else None

    @property
    def mean_running(self) -> float:
        return self.running / self.steps if self.steps else 0.0
