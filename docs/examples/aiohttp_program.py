import asyncio

from aiohttp import ClientSession, web

from frontends.aiohttp_app import build_app
from llmserve import EngineManager


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="a route of this program\n")


async def main() -> None:
    async with EngineManager.open(engine="simulated") as manager:
        app = build_app(manager, "my-model")  # all routes of llmserve: OpenAI's API, the page, /metrics
        app.router.add_get("/hello", hello)
        # llmserve cancels a request when its handler is cancelled, and decides itself about compressed bodies.
        runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 8000).start()
        async with ClientSession("http://127.0.0.1:8000") as client:
            print(await (await client.get("/hello")).text(), end="")
            answer = await client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 4})
            print((await answer.json())["usage"])
        await runner.cleanup()


asyncio.run(main())
