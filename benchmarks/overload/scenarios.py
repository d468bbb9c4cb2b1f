"""The workloads of the study, each with its engine and its SLO.

Nothing here concerns admission: one configuration serves all workloads.
"""

from pathlib import Path

import attrs

from benchmarks.overload.engine import EngineSize
from benchmarks.overload.judge import LATER
from benchmarks.overload.laws import H200_8B, Law
from benchmarks.overload.traffic import LengthClass, Mix
from llmserve.config import SLO

# The length classes of a trace: the thirds of its prompts, from the shortest on.
THIRDS = ("short", "medium", "long")
# Clients without a first token go away after this multiple of the TTFT objective.
PATIENCE = 10.0


@attrs.frozen(kw_only=True)
class Scenario:
    """One workload.

    Attributes:
        mix: What the requests are drawn from, unless there is a `trace`.
        trace: File of recorded requests, which are sent instead.
        later: Mix that the requests have from the middle of the run on.
        seconds: Duration of the load.
        warm_up: Seconds at the start that are not judged.
        cool_down: Seconds at the end that are not judged.
        shape: Shape of the gamma-distributed gaps: 1 is Poisson, less is bursty.
        drop: Start and end of the time in which the engine is slower, as shares of `seconds`.
        slower: Factor by which the engine's steps take longer during the drop.
    """

    name: str
    mix: Mix = attrs.field(factory=lambda: Mix(classes=()))
    trace: Path | None = None
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
        """Names of the length classes, followed by those of the later mix."""
        if self.trace is not None:
            return list(THIRDS)
        later = [LATER + one.name for one in self.later.classes] if self.later is not None else []
        return [one.name for one in self.mix.classes] + later

    @property
    def patience(self) -> float:
        """Seconds after which a client without a first token goes away."""
        assert self.slo.ttft is not None
        return PATIENCE * self.slo.ttft

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
        # A reasoning answer takes half a minute.
        Scenario(name="reasoning", mix=REASONING, seconds=400.0, warm_up=60.0, cool_down=60.0),
        Scenario(name="mixed", mix=MIXED),
        Scenario(name="kv-tight", mix=MIXED, size=EngineSize(kv_tokens=60_000)),
        Scenario(name="capacity-drop", mix=MIXED, drop=(0.35, 0.7)),
        Scenario(name="mix-shift", mix=CHAT, later=MIXED),
        # The coefficient of variation is 2.
        Scenario(name="bursty", mix=CHAT, shape=0.25),
    )
}
