import anyio

from llmserve import CancellationToken, EngineManager, RequestCancelled


async def main() -> None:
    async with EngineManager.open(engine="simulated") as manager, anyio.create_task_group() as tasks:
        token = CancellationToken()

        async def ask(prompt: str) -> None:
            try:
                await manager.generate(prompt, token, max_tokens=1000, ignore_eos=True)
            except RequestCancelled as error:
                print(prompt, "ended:", error, "after", len(error.partial.token_ids) if error.partial else 0, "tokens")

        tasks.start_soon(ask, "first")
        tasks.start_soon(ask, "second")
        await anyio.sleep(0.1)
        token.cancel("the user left")  # from any task or thread; it ends both requests


anyio.run(main)
