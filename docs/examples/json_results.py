import asyncio
import json

from llmserve import EngineManager


async def main() -> None:
    async with EngineManager.open(engine="simulated") as manager:
        completion = await manager.generate("Hello", max_tokens=2, logprobs=1)
        print(json.dumps(completion.to_dict(), indent=1))


asyncio.run(main())
