"""First, middle and last step of a real vLLM core for one request; the stubbed core repeats them.

`recorded_steps.json` holds every field that differs from its default. `python -m
benchmarks.stand_ins.recorded_steps` records the steps on the installed vLLM and the bundled model.
tests/vllm compares the file with a running core, so that the stub cannot drift from it.
"""

import asyncio
import dataclasses
import enum
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from llmserve import EngineManager, Sampling

FILE = Path(__file__).with_name("recorded_steps.json")
STEPS = ("first", "middle", "last")
ANSWER_TOKENS = 5
# Fields that the stub sets itself.
OWN = ("request_id", "new_token_ids", "timestamp", "outputs")


def describe(value: Any) -> Any:
    """Describe a vLLM value as JSON: classes with their non-default fields, enums by name."""
    kind = type(value)
    where = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, enum.Enum):
        return {"enum": where, "name": value.name}
    if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
        fields = {name: describe(getattr(value, name)) for name, default in _fields(kind) if getattr(value, name) != default}
        return {"class": where, **{name: found for name, found in fields.items() if name not in OWN}}
    if isinstance(value, list | tuple):
        return [describe(one) for one in value]
    return value


def _fields(kind: Any) -> Iterator[tuple[str, Any]]:
    found: Any = msgspec.structs.fields(kind) if issubclass(kind, msgspec.Struct) else dataclasses.fields(kind)
    for field in found:
        yield field.name, field.default_factory() if callable(field.default_factory) else field.default


def describe_step(outputs: Any) -> dict[str, Any]:
    (output,) = outputs.outputs
    return {"step": describe(outputs), "output": describe(output)}


def maker(described: Any) -> Callable[[float], Any]:
    """Return a function that makes the value again, as of a time on the monotonic clock.

    Fields that the installed vLLM does not have are left out.
    """
    if isinstance(described, list):
        parts = [maker(one) for one in described]
        return lambda now: [part(now) for part in parts]
    if not isinstance(described, dict) or not {"class", "enum"} & described.keys():
        return lambda _: described
    where = described["class" if "class" in described else "enum"]
    module, name = where.split(":")
    kind: Any = getattr(importlib.import_module(module), name)
    if "enum" in described:
        return lambda _: kind[described["name"]]
    known = dict(_fields(kind))
    makers = {name: maker(value) for name, value in described.items() if name in known}
    stamped = "timestamp" in known

    if not makers and not stamped:
        return lambda _, **own: kind(**own)

    def make(now: float, **own: Any) -> Any:
        fields = {name: make_field(now) for name, make_field in makers.items()}
        return kind(**fields, **own, **({"timestamp": now} if stamped else {}))

    return make


class RecordedSteps:
    def __init__(self) -> None:
        recorded = json.loads(FILE.read_text())["steps"]
        self._outputs = {name: maker(recorded[name]["output"]) for name in STEPS}
        self._step = maker(recorded["middle"]["step"])

    def output(self, which: str, request_id: str, token: int, now: float) -> Any:
        """Make an EngineCoreOutput; `which` is one of STEPS."""
        make: Any = self._outputs[which]
        return make(now, request_id=request_id, new_token_ids=[token])

    def step(self, outputs: list[Any], now: float) -> Any:
        make: Any = self._step
        step = make(now, outputs=outputs)
        step.scheduler_stats.num_running_reqs = len(outputs)
        return step


async def record(manager: EngineManager) -> dict[str, Any]:
    """Describe the steps of one request to a running VLLMEngine that serves no other request."""
    engine: Any = manager.engine
    core, seen = engine.running_llm.engine_core, []
    receive = core.get_output_async

    async def spy() -> Any:
        seen.append(await receive())
        return seen[-1]

    core.get_output_async = spy
    try:
        # vLLM's output handler is still waiting in the original method. The first answer brings it
        # to the spy.
        for _ in range(2):
            await manager.generate("Once upon a time", sampling=Sampling(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True))
    finally:
        core.get_output_async = receive
    first, middle, *_, last = [step for step in seen if step.outputs][-ANSWER_TOKENS:]
    return dict(zip(STEPS, map(describe_step, (first, middle, last)), strict=True))


async def main() -> None:
    async with EngineManager.open("bundled") as manager:
        engine: Any = manager.engine
        recorded = {"vllm": engine.info.version, "steps": await record(manager)}
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
