import asyncio

from frontends.rawsocket.client import SocketClient


async def main() -> None:
    async with SocketClient("tcp://127.0.0.1:9000") as client:  # stream() and generate() work as the manager's do
        answer = await client.generate("The capital of France is", max_tokens=16)
        print(answer.text)


asyncio.run(main())
