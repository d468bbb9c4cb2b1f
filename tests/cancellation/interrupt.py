"""Something happens to a coroutine at its k-th suspension, for every k: between two suspensions nothing else can happen to it."""

import types


@types.coroutine
def interrupted(coroutine, points, act):
    """Run it, and call `act()` when it suspends for the k-th time, for each k in `points`; returns (result, suspensions).

    The suspension itself goes to the event loop as it is, which then deals with what `act` has done as it would with the real thing.
    """
    count = 0
    resume, value = coroutine.send, None
    while True:
        try:
            suspended = resume(value)
        except StopIteration as end:
            return end.value, count
        count += 1
        if count in points:
            act()
        try:
            resume, value = coroutine.send, (yield suspended)
        except BaseException as error:
            resume, value = coroutine.throw, error


class Reached:
    """How often `act` was called: fewer times than asked for, and the sweep is at its end."""

    def __init__(self, act):
        self._act = act
        self.times = 0

    def __call__(self):
        self.times += 1
        self._act()
