"""Acts on a coroutine at its k-th suspension, for every k: nothing else can happen in between."""

import types


@types.coroutine
def interrupted(coroutine, points, act):
    """Run the coroutine; call `act()` at its k-th suspension for each k in `points`.

    Return (result, suspensions). The suspension itself goes to the event loop unchanged, which then
    handles the effect of `act` as it would handle the real event.
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
    """The number of calls of `act`. If it is lower than requested, the sweep is complete."""

    def __init__(self, act):
        self._act = act
        self.times = 0

    def __call__(self):
        self.times += 1
        self._act()
