import asyncio

from llmserve import EngineManager, Timeline


class Slowest:
    """An observer: the manager calls it for every token and every end, so its methods are quick."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        pass

    def finished(self, timeline: Timeline) -> None:
        if timeline.finished is not None:
            self.seconds = max(self.seconds, timeline.finished - timeline.arrived)


async def main() -> None:
    slowest = Slowest()
    async with EngineManager.open(engine="simulated", observers=[slowest]) as manager:
        await asyncio.gather(*(manager.generate("Hello", max_tokens=n) for n in (5, 50)))
        metrics = manager.metrics()
        print(metrics["requests"]["completed"], "answers, first token after", metrics["ttft"]["p50"], "s in the median")
        print(manager.statistics().open, f"open; the slowest answer took {slowest.seconds:.3f} s")


asyncio.run(main())
