"""The rate of a batch's lines beside other requests, and those requests' time to first token: `python -m benchmarks batch`."""

import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
import msgspec
import numpy as np

from benchmarks.overload.tables import markdown, percent
from benchmarks.targets.local_batch import LocalBatch
from llmserve import EngineManager

# Seconds in which cancelled requests leave the engine.
SETTLE = 2.0
# Seconds for which lines run before a measurement begins.
WARM = 30.0
# Prompts are of these token ids, which are text in the vocabularies of the models that we measure.
FIRST_TOKEN, LAST_TOKEN = 20, 200
URL = "/v1/completions"


class Kind(msgspec.Struct, frozen=True):
    """A kind of request: tokens in, tokens out, and requests per second (0 for a batch's lines)."""

    prompt: int
    output: int
    rate: float = 0.0


class Trial(msgspec.Struct, kw_only=True):
    """What happened in `seconds`: the lines per second, and the other requests' times to first token in seconds."""

    lines: Kind | None
    others: Kind | None
    seconds: float
    rate: float
    first_tokens: list[float]
    stopped: int


class Row(msgspec.Struct, kw_only=True):
    """Requests of one kind beside a batch.

    Attributes:
        capacity: The rate at which the engine answers only these requests, as a batch.
        idle, beside: The lines alone and beside the requests.
        alone: The requests without lines.
    """

    capacity: Trial
    idle: Trial
    alone: Trial
    beside: Trial

    @property
    def share(self) -> float:
        """The part of the engine that the requests take."""
        assert self.alone.others is not None
        return self.alone.others.rate / self.capacity.rate

    @property
    def used(self) -> float:
        """The rate of the lines, relative to the idle capacity that the requests leave."""
        return self.beside.rate / (self.idle.rate * (1 - self.share))


def conclude(rows: Sequence[Row]) -> str:
    """Return a table of the rows."""
    head = ["other requests", "their share of the engine", "lines, of the idle capacity"]
    head += ["TTFT p50", "with lines", "TTFT p99", "with lines"]
    return markdown(head, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    kind = row.alone.others
    assert kind is not None
    cells = [f"{kind.prompt} tokens in, {kind.output} out, {kind.rate:g}/s", percent(row.share), percent(row.used)]
    for share in (0.5, 0.99):
        alone, beside = (float(np.quantile(trial.first_tokens, share)) for trial in (row.alone, row.beside))
        cells += [f"{alone:.3f} s", f"{100 * (beside / alone - 1):+.0f} %"]
    return cells


async def measure(
    manager: EngineManager, lines: Kind, others: Sequence[Kind], seconds: float, say: Callable[[str], None]
) -> AsyncIterator[Row]:
    """Measure with requests of each kind. The manager is entered here."""
    source = random.Random(7)
    async with manager:
        idle = await _trial(manager, source, lines, None, seconds)
        say(f"lines alone: {idle.rate:.2f}/s")
        for kind in others:
            capacity = await _trial(manager, source, Kind(kind.prompt, kind.output), None, seconds, alone=True)
            alone = await _trial(manager, source, None, kind, seconds)
            beside = await _trial(manager, source, lines, kind, seconds)
            say(f"{kind.prompt} tokens in, {kind.rate:g}/s: {beside.rate:.2f} lines/s; {len(beside.first_tokens)} first tokens")
            yield Row(capacity=capacity, idle=idle, alone=alone, beside=beside)


async def _trial(
    manager: EngineManager, source: random.Random, lines: Kind | None, others: Kind | None, seconds: float, *, alone: bool = False
) -> Trial:
    batch = LocalBatch(manager, alone=alone)
    first_tokens: list[float] = []

    async def ask(kind: Kind, prompt: list[int]) -> None:
        async with manager.stream(prompt, max_tokens=kind.output, ignore_eos=True) as stream:
            await stream.collect()
        assert stream.timeline.first_token is not None
        first_tokens.append(stream.timeline.first_token - stream.timeline.arrived)

    async with batch.running(), anyio.create_task_group() as tasks:
        if lines is not None:
            tasks.start_soon(batch.run, _texts(source, lines))
            await anyio.sleep(WARM)
        # All measurements have the same arrivals, because a burst of them decides about the tail.
        times = random.Random(11)
        begun, before, passed = anyio.current_time(), batch.answered, 0.0
        while passed < seconds:
            await anyio.sleep(times.expovariate(others.rate) if others else seconds)
            if others is not None:
                tasks.start_soon(ask, others, _prompt(source, others))
            passed = anyio.current_time() - begun
        rate = (batch.answered - before) / passed
        tasks.cancel_scope.cancel()
    # The next trial begins without the requests of this one, which have just been cancelled.
    await anyio.sleep(SETTLE)
    return Trial(lines=lines, others=others, seconds=passed, rate=rate, first_tokens=first_tokens, stopped=batch.stopped)


async def _texts(source: random.Random, kind: Kind) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the numbers and texts of the lines of an endless batch."""
    for number in itertools.count(1):
        body = {"prompt": _prompt(source, kind), "max_tokens": kind.output, "ignore_eos": True}
        yield number, json.dumps({"custom_id": str(number), "method": "POST", "url": URL, "body": body}).encode()


def _prompt(source: random.Random, kind: Kind) -> list[int]:
    return source.choices(range(FIRST_TOKEN, LAST_TOKEN), k=kind.prompt)
