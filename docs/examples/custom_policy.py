import asyncio

from llmserve import EngineManager
from llmserve.admission import Ticket


class LimitedPrompts:
    """Lets answers run while their prompts have at most `tokens` tokens together."""

    name, limit = "limited-prompts", None

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.running = 0

    def holds(self, ticket: Ticket, now: float) -> str | None:  # the reason not to start the ticket now, or None
        return "prompts" if self.running and self.running + ticket.prompt_tokens > self.tokens else None

    def started(self, ticket: Ticket, now: float) -> None:
        self.running += ticket.prompt_tokens

    def left(self, ticket: Ticket, now: float) -> float | None:  # only tickets that started
        self.running -= ticket.prompt_tokens
        return None


async def main() -> None:
    async with EngineManager.open(engine="simulated", admission=LimitedPrompts(100)) as manager:
        await asyncio.gather(*(manager.generate("word " * 12, max_tokens=20) for _ in range(6)))
        print(manager.metrics()["admission"]["held"])


asyncio.run(main())
