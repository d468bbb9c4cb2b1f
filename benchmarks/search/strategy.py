"""Chooses the next load of a search from the loads so far. Pure.

The load grows until one misses the SLO. Then each step narrows the span between the highest load
that meets it and the lowest one that does not, at the load where the points predict the limit, or
in the middle of the span in logarithms.
"""

import math
from collections.abc import Sequence

import attrs

from benchmarks.search.verdict import Verdict

# The load grows by the larger factor while the latency is below half of the SLO, or grew by less
# than a tenth with the last step.
GROWTH, FAST_GROWTH, EASY, FLAT = 2.0, 8.0, 0.5, 1.1
FALL = 4.0
# Below this share of the first load, requests are alone on the server.
LEAST_SHARE = 1 / 20
# A probe beside the predicted limit, in multiples of the wanted width.
BESIDE = 0.4
MISSES = ("unlikely", "missed")


@attrs.frozen(kw_only=True)
class Bracket:
    """What the loads so far say about the highest load.

    Attributes:
        low: The highest load that meets the SLO, or probably does, below all that miss it; None if
            there is none.
        high: The lowest load that misses the SLO; None if there is none.
        unclear: Loads between them, which probably miss it, in ascending order.
    """

    low: Verdict | None
    high: Verdict | None
    unclear: list[float]

    def gaps(self) -> list[tuple[float, float]]:
        """Return the spans of loads that were not measured, below and above the unclear ones."""
        if self.low is None or self.high is None:
            return []
        low, high = self.low.load, self.high.load
        return [(low, self.unclear[0]), (self.unclear[-1], high)] if self.unclear else [(low, high)]


def bracket(verdicts: Sequence[Verdict]) -> Bracket:
    high = min((each for each in verdicts if each.outcome == "missed"), key=lambda each: each.load, default=None)
    below = [each for each in verdicts if high is None or each.load < high.load]
    low = max((each for each in below if each.outcome in ("met", "likely")), key=lambda each: each.load, default=None)
    unclear = sorted(each.load for each in below if each.outcome == "unlikely" and (low is None or each.load > low.load))
    return Bracket(low=low, high=high, unclear=unclear)


def next_load(verdicts: Sequence[Verdict], first: float, width: float, *, whole: bool) -> float | None:
    """Return the next load, or None if the span is narrow or no load meets the SLO.

    Args:
        verdicts: The loads so far, in the order of their measurement.
        first: The first load, if there is none yet.
        width: Wanted difference of the span's ends, relative to the lower one.
        whole: Whether loads are whole numbers.
    """
    if not verdicts:
        return first
    found = bracket(verdicts)
    if found.high is None:
        *before, top = sorted(verdicts, key=lambda each: each.load)
        if top.outcome == "unlikely" and top.faults:
            return _before_the_generator(found.low, top, verdicts[0].load, width, whole=whole)
        return top.load * (FAST_GROWTH if _is_easy(top, before[-1:]) else GROWTH)
    if found.low is None:
        return _below(min([found.high.load, *found.unclear]), found.high, verdicts[0].load, whole=whole)
    wide = [gap for gap in found.gaps() if not _is_narrow(gap, width, whole=whole)]
    if not wide:
        return None
    predicted = predict(verdicts, found.low, found.high)
    span = next((gap for gap in wide if predicted is not None and gap[0] < predicted < gap[1]), max(wide, key=lambda gap: gap[1] / gap[0]))
    chosen = _probe(span, predicted, width, _last_two(verdicts))
    return float(min(max(round(chosen), math.floor(span[0]) + 1), math.ceil(span[1]) - 1)) if whole else chosen


def _before_the_generator(low: Verdict | None, top: Verdict, first: float, width: float, *, whole: bool) -> float | None:
    """Return a load below one that the generator could not send in time; None if none is left."""
    if low is None:
        return _below(top.load, top, first, whole=whole)
    if _is_narrow((low.load, top.load), width, whole=whole):
        return None
    middle = math.sqrt(low.load * top.load)
    return max(low.load + 1, float(math.floor(middle))) if whole else middle


def _is_easy(top: Verdict, before: Sequence[Verdict]) -> bool:
    if top.outcome == "unlikely":
        return False
    return top.margin is None or top.margin < EASY or any(each.margin and top.margin <= FLAT * each.margin for each in before)


def _below(load: float, high: Verdict, first: float, *, whole: bool) -> float | None:
    """Return a lower load while none meets the SLO."""
    lower = load / FALL
    if high.served is not None and high.served < load:
        lower = max(lower, high.served / 2)
    if whole:
        return None if load <= 1 else float(max(1, math.floor(lower)))
    return lower if lower >= first * LEAST_SHARE else None


def _is_narrow(gap: tuple[float, float], width: float, *, whole: bool) -> bool:
    # A ratio of two decimal fractions is a little off.
    return gap[1] / gap[0] <= 1 + width + 1e-9 or (whole and gap[1] - gap[0] <= 1)


def predict(verdicts: Sequence[Verdict], low: Verdict, high: Verdict) -> float | None:
    """Return where the latency at the wanted share would reach the SLO.

    With a known capacity, latency is taken as a + b / (capacity - rate), as in a queue. Otherwise
    its logarithm is a straight line between the two ends.
    """
    backlogs = [each for each in verdicts if each.served is not None]
    capacity = min(backlogs, key=lambda each: each.load).served if backlogs else None
    if capacity is not None and low.load < capacity:
        return _in_a_queue(verdicts, low, high, capacity)
    if low.margin and high.margin and low.margin < 1 < high.margin < math.inf:
        share = math.log(1 / low.margin) / math.log(high.margin / low.margin)
        return float(low.load * (high.load / low.load) ** min(max(share, 0.1), 0.9))
    return None


def _in_a_queue(verdicts: Sequence[Verdict], low: Verdict, high: Verdict, capacity: float) -> float:
    """Predict by two points: the lowest that misses the SLO if it lies below the capacity, or two that meet it.

    With one point, all of its latency is taken as waiting.
    """
    if low.margin is None or low.margin >= 1:
        return capacity
    other = high
    if not (high.load < capacity and high.margin is not None and 1 < high.margin < math.inf):
        lower = [each for each in verdicts if each.load < low.load and each.margin is not None and each.outcome in ("met", "likely")]
        if not lower:
            return capacity - (capacity - low.load) * low.margin
        other = max(lower, key=lambda each: each.load)
    idle = 1 / (capacity - low.load)
    slope = ((other.margin or 0.0) - low.margin) / (1 / (capacity - other.load) - idle)
    return capacity - 1 / (idle + (1 - low.margin) / slope) if slope > 0 else capacity


def _last_two(verdicts: Sequence[Verdict]) -> list[bool]:
    """Return whether the last two loads after the first miss missed too; fewer if there are fewer."""
    first = next(place for place, each in enumerate(verdicts) if each.outcome == "missed")
    return [each.outcome in MISSES for each in verdicts[first + 1 :][-2:]]


def _probe(span: tuple[float, float], predicted: float | None, width: float, missed: Sequence[bool]) -> float:
    """Return a load inside the span: on the other side of the predicted limit than the last load.

    After two loads with the same outcome the prediction was wrong, so the load lies at least in the
    middle of the rest. `missed` are the last two outcomes.
    """
    low, high = span
    middle = math.sqrt(low * high)
    if predicted is None or not low < predicted < high * (1 + width):
        return middle
    below = not missed or missed[-1]
    chosen = predicted / (1 + BESIDE * width) if below else predicted * (1 + BESIDE * width)
    if len(missed) == 2 and missed[0] == missed[1]:
        chosen = min(chosen, middle) if below else max(chosen, middle)
    # A probe at an end of the span would not narrow it, and one far off is no better than the middle.
    least, most = low * (1 + width / 4), high / (1 + width / 4)
    return min(max(chosen, least), most) if least < most else middle
