import asyncio

from llmserve import DeadlineExceeded, EngineManager


async def main() -> None:
    async with EngineManager.open(engine="simulated") as manager:
        try:
            await manager.generate("A long story:", max_tokens=1000, ignore_eos=True, deadline=0.2)
        except DeadlineExceeded as error:
            print(error)
            if error.partial:  # the output that came in time, or None before the first token
                print(error.partial.finish_reason, error.partial.usage.completion_tokens, "tokens")


asyncio.run(main())
