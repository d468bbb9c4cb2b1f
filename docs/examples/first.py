import asyncio

from llmserve import EngineManager


async def main() -> None:
    async with EngineManager.open("bundled") as manager:  # or a folder, or a name on the Hugging Face hub
        answer = await manager.generate("The capital of France is", max_tokens=16, temperature=0, stop="\n")
        print(answer.text, answer.usage)
        messages = [{"role": "user", "content": "Tell me a story."}]
        async with manager.stream(messages, max_tokens=64, deadline=30) as stream:
            async for delta in stream:
                print(delta.text, end="", flush=True)


if __name__ == "__main__":  # vLLM starts its engine in a process that imports this file
    asyncio.run(main())
