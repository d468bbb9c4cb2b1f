"""Kills or stops a real engine under load, repeatedly: `python -m benchmarks faults`.

Accounts for every request, once as its caller saw it and once as the manager counted it; both must
agree. Also reports how soon the manager and the callers knew. Half of the clients read streams,
half ask for whole answers. Each request is greedy, so the length and the beginning of an answer
show whether two engines had a part in it.
"""

import signal
import time
from collections import Counter
from collections.abc import Callable

import anyio
import attrs
import msgspec
import psutil

from benchmarks.targets import TargetError
from llmserve import (
    EngineManager,
    EngineRestarted,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    Outcome,
    Overloaded,
    RestartConfig,
    Sampling,
    State,
    Timeline,
)
from llmserve.engines.vllm.engine import VLLMEngine

PROMPT, TOKENS = "The capital of France is", 96
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
# A refused client retries after this pause, regardless of Retry-After, so that there is something
# to refuse.
PAUSE = 1.0
LOOK = 0.005


class Kill(msgspec.Struct, kw_only=True):
    """Seconds from the signal until the manager knew, begun streams ended, the engine was back."""

    streaming: int
    known: float
    told: float
    back: float


class Books(msgspec.Struct, kw_only=True):
    """The outcome of all requests.

    Attributes:
        callers: Number of requests by what their callers saw.
        manager: Number of requests by what the manager counted.
        outlived: Whole answers to requests that were open when an engine died.
    """

    seconds: float
    kills: list[Kill]
    callers: dict[str, int]
    manager: dict[str, int]
    outlived: int
    faults: list[str]


@attrs.define
class _Ledger:
    """The callers' records, and as an observer the manager's."""

    ends: dict[str, Outcome] = attrs.field(factory=dict)
    seen: dict[str, str] = attrs.field(factory=dict)
    begun: dict[str, float] = attrs.field(factory=dict)
    streaming: set[str] = attrs.field(factory=set)
    outlived: int = 0
    last_kill: float = 0.0
    faults: list[str] = attrs.field(factory=list)

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        pass

    def finished(self, timeline: Timeline) -> None:
        if timeline.request_id in self.ends:
            self.faults.append(f"{timeline.request_id} ended twice for the manager")
        self.ends[timeline.request_id] = timeline.outcome or Outcome.FAILED

    def books(self, seconds: float, kills: list[Kill]) -> Books:
        missing = set(self.seen) ^ set(self.ends)
        return Books(
            seconds=seconds,
            kills=kills,
            callers=dict(Counter(self.seen.values())),
            manager=dict(Counter(outcome.value for outcome in self.ends.values())),
            outlived=self.outlived,
            faults=[*self.faults, *(f"{name} is only in the caller's or only in the manager's records" for name in sorted(missing))],
        )


class Fleet:
    """Clients in closed loops."""

    def __init__(self, manager: EngineManager, ledger: _Ledger) -> None:
        self._manager = manager
        self._ledger = ledger
        self._expected: tuple[int, ...] = ()
        self.over = False

    async def learn(self) -> None:
        self._expected = (await self._manager.generate(self._request("first"))).token_ids
        self._ledger.seen["first"] = "whole"

    def _request(self, name: str) -> GenerationRequest:
        return GenerationRequest(PROMPT, request_id=name, sampling=Sampling(max_tokens=TOKENS, ignore_eos=True, temperature=0))

    async def client(self, client: int) -> None:
        number = 0
        while not self.over:
            number += 1
            name = f"{client}.{number}"
            self._ledger.begun[name] = time.monotonic()
            try:
                tokens = await (self._streamed(name) if client % 2 else self._whole(name))
                self._check(name, tokens, whole=True)
                saw = "whole"
                self._ledger.outlived += self._ledger.begun[name] < self._ledger.last_kill
            except EngineRestarted:
                saw = "interrupted by an engine failure"
            except Overloaded:
                saw = "refused"
                await anyio.sleep(PAUSE)
            except LLMServeError as error:
                saw = f"{type(error).__name__}: {error}"
            if name in self._ledger.seen:
                self._ledger.faults.append(f"{name} ended twice for its caller")
            self._ledger.seen[name] = saw

    async def _whole(self, name: str) -> tuple[int, ...]:
        return (await self._manager.generate(self._request(name))).token_ids

    async def _streamed(self, name: str) -> tuple[int, ...]:
        tokens: tuple[int, ...] = ()
        try:
            async with self._manager.stream(self._request(name)) as stream:
                async for delta in stream:
                    self._ledger.streaming.add(name)
                    tokens += delta.token_ids
        finally:
            self._ledger.streaming.discard(name)
            self._check(name, tokens, whole=False)
        return tokens

    def _check(self, name: str, tokens: tuple[int, ...], *, whole: bool) -> None:
        # In another batch, sums are taken in another order, so a later token may differ by chance.
        # The length may not.
        if len(tokens) > TOKENS or (whole and len(tokens) != TOKENS) or tokens[:2] != self._expected[: min(2, len(tokens))]:
            self._ledger.faults.append(f"{name} got {len(tokens)} tokens, beginning with {tokens[:4]}")


def _cores(manager: EngineManager) -> list[psutil.Process]:
    if not isinstance(manager.engine, VLLMEngine):
        raise TargetError("this engine has no separate process to kill")
    return [psutil.Process(pid) for pid in manager.engine.processes()]


async def _kill(manager: EngineManager, ledger: _Ledger, sent: signal.Signals) -> Kill:
    cores, waiting = _cores(manager), set(ledger.streaming)
    began = ledger.last_kill = time.monotonic()
    for core in cores:
        core.send_signal(sent)
    known = told = None
    while manager.state is not State.READY or known is None:
        now = time.monotonic() - began
        if known is None and manager.state is not State.READY:
            known = now
        if told is None and not waiting & ledger.streaming:
            told = now
        if manager.state is State.FAILED:
            raise TargetError("the engine was not restarted")
        await anyio.sleep(LOOK)
    back = time.monotonic() - began
    return Kill(streaming=len(waiting), known=known, told=back if told is None else told, back=back)


async def measure(
    manager_of: Callable[[ManagerConfig, _Ledger], EngineManager],
    sent: signal.Signals,
    *,
    seconds: float,
    every: float,
    clients: int,
    stall: float,
    report: Callable[[str], None],
) -> Books:
    """Run for `seconds`, with a signal each time the engine was up for `every` seconds."""
    ledger = _Ledger()
    # More restarts than an operator would accept.
    config = ManagerConfig(restart=RestartConfig(most=10_000, longest_pause=1.0, stall_timeout=stall))
    kills: list[Kill] = []
    async with manager_of(config, ledger) as manager:
        fleet = Fleet(manager, ledger)
        await fleet.learn()
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for client in range(clients):
                tasks.start_soon(fleet.client, client)
            while time.monotonic() - began < seconds:
                await anyio.sleep(every)
                kill = await _kill(manager, ledger, sent)
                kills.append(kill)
                report(f"{kill.streaming} streams: noticed {kill.known:.2f} s, ended {kill.told:.2f} s, restarted {kill.back:.1f} s")
            fleet.over = True
        statistics = manager.statistics()
        if statistics.open or statistics.running or statistics.engine.running:
            ledger.faults.append(f"left over: {statistics}")
    return ledger.books(time.monotonic() - began, kills)


def conclude(books: Books) -> str:
    lines = [f"{len(books.kills)} signals in {books.seconds:.0f} s"]
    for name, label in (("known", "detected"), ("told", "last stream ended"), ("back", "engine back")):
        times = sorted(getattr(kill, name) for kill in books.kills)
        lines.append(f"{label} after {times[len(times) // 2]:.2f} s, at most {times[-1]:.2f} s" if times else label)
    lines += [f"{count:6} {what}" for what, count in sorted(books.callers.items())]
    lines.append(f"{books.outlived:6} whole answers were begun before an engine died")
    lines.append(f"the manager counted {books.manager}")
    lines += [f"FAULT: {fault}" for fault in books.faults] or ["the callers' and the manager's records agree"]
    return "\n".join(lines)
