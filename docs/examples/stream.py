import asyncio

from llmserve import EngineManager


async def main() -> None:
    async with EngineManager.open(engine="simulated") as manager:
        async with manager.stream("Once upon a time", max_tokens=8, ignore_eos=True) as stream:
            async for delta in stream:
                print(repr(delta.text), delta.finish_reason)
        print(stream.usage)


asyncio.run(main())
