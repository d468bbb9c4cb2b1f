"""The workloads of the study, each with its engine and its promise. Nothing about admission stands here: one configuration meets all."""

import attrs

from benchmarks.overload.engine import EngineSize
from benchmarks.overload.judge import LATER
from benchmarks.overload.laws import H200_8B, Law
from benchmarks.overload.traffic import LengthClass, Mix
from llmserve.config import SLO


@attrs.frozen(kw_only=True)
class Scenario:
    """`seconds` are sent, of which those from `warm_up` on, and before `cool_down` at the end, are judged.

    From `drop` (start and end, as shares of `seconds`) on the engine takes `slower` times as long. From the middle on it is the mix
    `later` that is asked for, where there is one. Gaps between requests are gamma distributed with `shape`: 1 is Poisson, less is bursty.
    """

    name: str
    mix: Mix
    size: EngineSize = attrs.field(factory=EngineSize)
    law: Law = H200_8B
    slo: SLO = attrs.field(factory=lambda: SLO(ttft=1.0, tpot=0.05))
    seconds: float = 160.0
    warm_up: float = 20.0
    cool_down: float = 20.0
    later: Mix | None = None
    shape: float = 1.0
    drop: tuple[float, float] | None = None
    slower: float = 2.0

    @property
    def classes(self) -> list[str]:
        """Names of the classes of lengths; those of the later mix follow."""
        later = [LATER + one.name for one in self.later.classes] if self.later is not None else []
        return [one.name for one in self.mix.classes] + later

    def slowness(self) -> tuple[tuple[float, float], ...]:
        if self.drop is None:
            return ()
        start, end = self.drop
        return ((start * self.seconds, self.slower), (end * self.seconds, 1.0))


CHAT = Mix(
    classes=(
        LengthClass("short", 0.5, (100, 0.5, 1000), (150, 0.5, 1000)),
        LengthClass("medium", 0.35, (250, 0.4, 1500), (200, 0.5, 1000)),
        LengthClass("long", 0.15, (700, 0.4, 3000), (250, 0.5, 1000)),
    ),
    prefixed=0.5,
    prefixes=4,
    prefix_tokens=128,
)
RAG = Mix(
    classes=(
        LengthClass("short", 0.4, (2500, 0.2, 6000), (120, 0.5, 600)),
        LengthClass("medium", 0.4, (4000, 0.2, 8000), (120, 0.5, 600)),
        LengthClass("long", 0.2, (6000, 0.2, 12000), (160, 0.5, 600)),
    ),
    prefixed=0.5,
    prefixes=2,
    prefix_tokens=512,
)
REASONING = Mix(
    classes=(
        LengthClass("short", 0.5, (150, 0.5, 1000), (700, 0.5, 4000)),
        LengthClass("medium", 0.3, (200, 0.5, 1000), (1400, 0.5, 4000)),
        LengthClass("long", 0.2, (300, 0.5, 1000), (2200, 0.4, 4000)),
    )
)
MIXED = Mix(
    classes=(
        LengthClass("short", 0.7, (180, 0.5, 1000), (160, 0.5, 1000)),
        LengthClass("medium", 0.25, (1400, 0.3, 4000), (160, 0.5, 1000)),
        LengthClass("long", 0.05, (7000, 0.15, 12000), (160, 0.5, 1000)),
    ),
    prefixed=0.3,
    prefixes=4,
    prefix_tokens=128,
)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="chat", mix=CHAT),
        Scenario(name="rag", mix=RAG),
        # Its answers take half a minute.
        Scenario(name="reasoning", mix=REASONING, seconds=400.0, warm_up=60.0, cool_down=60.0),
        Scenario(name="mixed", mix=MIXED),
        Scenario(name="kv-tight", mix=MIXED, size=EngineSize(kv_tokens=60_000)),
        Scenario(name="capacity-drop", mix=MIXED, drop=(0.35, 0.7)),
        Scenario(name="mix-shift", mix=CHAT, later=MIXED),
        # A coefficient of variation of 2.
        Scenario(name="bursty", mix=CHAT, shape=0.25),
    )
}
