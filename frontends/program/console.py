"""A progress bar on standard error while the engine loads."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from frontends.logs.operator_log import is_json, say
from frontends.logs.standard_streams import terminal_columns
from llmserve.models import cache_folder

# Expected seconds of the first start, before this machine has a measurement. The bundled model took
# 26 to 46 s on two cores.
FIRST_GUESS = 40.0
TICK = 0.25


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Draw a bar that fills in the time that the last start of `what` took.

    Where standard error is not a terminal, log one line instead. A thread draws the bar, because a
    task group in here would have to be left before the manager that is entered in here.
    """
    expected = _remembered().get(what, FIRST_GUESS)
    began = time.monotonic()
    columns = None if is_json() else terminal_columns()
    if columns is not None:
        with _filling(expected, began, columns):
            yield
    else:
        say(f"engine    loading, about {expected:.0f} s")
        yield
    _remember(what, time.monotonic() - began)


@contextmanager
def _filling(expected: float, began: float, columns: int) -> Iterator[None]:
    done = threading.Event()
    painter = threading.Thread(target=_fill, args=(expected, began, columns, done), daemon=True)
    painter.start()
    try:
        yield
    finally:
        done.set()
        painter.join()


def _fill(expected: float, began: float, columns: int, done: threading.Event) -> None:
    shape = "llmserve  engine    loading {bar:30} {elapsed} of about " + f"{expected:.0f} s"
    with tqdm(total=expected, bar_format=shape, leave=False, ncols=columns, file=sys.stderr) as bar:
        while not done.wait(TICK):
            # The bar is never full before the engine is ready: a slower start stops at 99 %.
            bar.n = min(time.monotonic() - began, expected * 0.99)
            bar.refresh()


def _remembered() -> dict[str, float]:
    try:
        starts = json.loads((cache_folder() / "starts.json").read_text())
        return {str(name): float(seconds) for name, seconds in starts.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember(what: str, seconds: float) -> None:
    starts = _remembered() | {what: round(seconds, 1)}
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / "starts.json").write_text(json.dumps(starts))
    except OSError:
        pass  # the next start guesses again
