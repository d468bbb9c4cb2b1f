"""Hostile schemas beside a stream: `python -m benchmarks grammars`.

Reports the effect of other clients' schemas on a stream, and how soon the schemas are refused.
"""

import time
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import numpy as np

from llmserve import EngineManager, GenerationRequest, InvalidRequest, LLMServeError, Overloaded, Sampling, StructuredOutputs

# Rows S1 and S2 of the attack table (docs/reliability.md). A number makes each schema different,
# because verdicts are cached.
HOSTILE: dict[str, Callable[[int], StructuredOutputs]] = {
    "a pattern of 10 s": lambda n: StructuredOutputs.json(
        {"type": "string", "pattern": f"^(.*a){{25}}[a-z]{{1,{4000 + n}}}(.|\\n){{1,5000}}$"}
    ),
    "a long repetition": lambda n: StructuredOutputs.regex(f"[\\w\\W]{{1,{60_000 + n}}}"),
    "a long text": lambda n: StructuredOutputs.json({"type": "string", "maxLength": 200_000 + n}),
    "many properties": lambda n: StructuredOutputs.json(
        {"type": "object", "properties": {f"p{n}_{i}": {"type": "string"} for i in range(1500)}}
    ),
    # These compile immediately and cost more with each token of the answer.
    "an ambiguous grammar": lambda n: StructuredOutputs.grammar(f'root ::= root root | [ a-z] | "{n}"'),
    "an ambiguous pattern": lambda n: StructuredOutputs.regex(f"((a|b|[a-z ]|{n})*|([a-z ]*))*"),
    "arrays of arrays": lambda n: StructuredOutputs.json(arrays_of_arrays(n)),
}


def arrays_of_arrays(number: int) -> dict[str, Any]:
    """Return twenty definitions, each an array of any of them.

    A text of brackets matches in more ways with each level.
    """
    names = [f"d{number}_{i}" for i in range(20)]
    either = {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/{name}"}} for name in names]}
    return {"$ref": f"#/$defs/{names[0]}", "$defs": dict.fromkeys(names, either)}


class Seen(msgspec.Struct, kw_only=True):
    """Results of one kind of schema.

    Attributes:
        ends: Number of requests by how they ended.
        longest_refusal: Longest time until a refusal, in seconds.
        gaps: The stream's gaps during the attack, in seconds.
    """

    kind: str
    ends: dict[str, int]
    longest_refusal: float
    gaps: list[float]


class Grammars(msgspec.Struct, kw_only=True):
    quiet: list[float]
    seen: list[Seen]


class Canary:
    """A stream that is started again whenever its context is full."""

    def __init__(self, manager: EngineManager) -> None:
        self._manager = manager
        self._came: list[float] = []

    async def probe(self) -> None:
        while True:
            async with self._manager.stream(GenerationRequest("Once upon a time", sampling=Sampling(ignore_eos=True))) as stream:
                async for _ in stream:
                    self._came.append(time.perf_counter())

    def gaps(self, since: float) -> list[float]:
        return [float(gap) for gap in np.diff([at for at in self._came if at >= since])]


async def measure(manager: EngineManager, at_once: int, seconds: float, report: Callable[[str], None]) -> Grammars:
    """Run all attacks. Raises ConfigurationError, EngineError."""
    async with manager, anyio.create_task_group() as tasks:
        # The process that tests schemas takes some seconds to start.
        await manager.generate("x", sampling=Sampling(max_tokens=1, structured_outputs=StructuredOutputs.regex("a")))
        canary = Canary(manager)
        tasks.start_soon(canary.probe)
        await anyio.sleep(1)
        since = time.perf_counter()
        await anyio.sleep(seconds)
        found = Grammars(quiet=canary.gaps(since), seen=[])
        for kind, make in HOSTILE.items():
            report(kind)
            found.seen.append(await _attack(manager, canary, kind, make, at_once))
        tasks.cancel_scope.cancel()
    return found


async def _attack(manager: EngineManager, canary: Canary, kind: str, make: Callable[[int], StructuredOutputs], at_once: int) -> Seen:
    ends: dict[str, int] = {}
    refusals = [0.0]

    async def ask(number: int) -> None:
        began = time.perf_counter()
        try:
            await manager.generate("x", sampling=Sampling(max_tokens=4, structured_outputs=make(number)))
            end = "answered"
        except LLMServeError as error:
            end = {InvalidRequest: "refused", Overloaded: "overloaded"}.get(type(error), type(error).__name__)
            refusals.append(time.perf_counter() - began)
        ends[end] = ends.get(end, 0) + 1

    since = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(at_once):
            tasks.start_soon(ask, number)
    return Seen(kind=kind, ends=ends, longest_refusal=max(refusals), gaps=canary.gaps(since))


def conclude(found: Grammars) -> str:
    def figures(gaps: list[float]) -> tuple[float, float, float]:
        return float(np.quantile(gaps, 0.5)), float(np.quantile(gaps, 0.99)), max(gaps)

    quiet = figures(found.quiet)
    lines = [f"without attack: a token every {quiet[0] * 1e3:.1f} ms, p99 {quiet[1] * 1e3:.1f} ms, at most {quiet[2] * 1e3:.0f} ms"]
    for seen in found.seen:
        p50, p99, longest = figures(seen.gaps)
        ends = ", ".join(f"{count} {end}" for end, count in sorted(seen.ends.items()))
        lines.append(
            f"{seen.kind}: {ends}, the slowest refusal after {seen.longest_refusal:.1f} s; "
            f"the stream's gaps are {p50 / quiet[0]:.2f} times, p99 {p99 / quiet[1]:.2f} times, at most {longest * 1e3:.0f} ms"
        )
    return "\n".join(lines)
