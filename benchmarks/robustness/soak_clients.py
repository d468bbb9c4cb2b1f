"""The clients of a soak: every way in which a request can arrive and end.

Requests come in process, over HTTP and over frames. They are answered, streamed, abandoned,
cancelled, late, refused, invalid, cut off or sent again. Names that a client chooses (tenants,
models, adapters, request ids, keys) are new each time, because remembered names make memory grow.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp

from benchmarks.targets import TargetError
from frontends.rawsocket.client import SocketClient
from llmserve import CancellationToken, EngineManager, GenerationRequest, LLMServeError, Sampling, StructuredOutputs

TOKENS = 4
# More tokens than any client waits for.
ENDLESS_TOKENS = 1000
LONGEST_SECONDS = 0.02
SLOW_SECONDS = 0.01
DEADLINE_SECONDS = 0.001
PROMPT = "Once upon a time"
# Each body is answered with a 4xx; a number makes each one different.
BAD_BODIES: tuple[Callable[[float], tuple[str, Any]], ...] = (
    lambda n: ("/v1/completions", {"prompt": "hi", "model": f"model {n}"}),
    lambda n: ("/generate", {"prompt": "hi", "adapter": f"adapter {n}"}),
    lambda n: ("/v1/completions", {"prompt": "hi", f"field {n}": 1}),
    lambda n: ("/v1/completions", {"prompt": "hi", "temperature": -n}),
    lambda n: ("/v1/chat/completions", {"messages": [{"role": f"role {n}", "content": "hi"}]}),
    lambda n: ("/v1/completions", {"prompt": [], "user": f"user {n}"}),
    lambda n: (f"/path/{n}", {}),
    lambda n: ("/detokenize", {"tokens": [10**7]}),
)


class Client:
    """Sends one request after another, each of a kind chosen at random."""

    def __init__(self, manager: EngineManager, session: aiohttp.ClientSession, socket: SocketClient, seed: int, ends: Counter[str]) -> None:
        self._manager = manager
        self._session = session
        self._socket = socket
        self._rng = random.Random(f"soak {seed}")
        self._ends = ends
        # Number of requests of each kind in a hundred.
        shares: dict[Callable[[], Awaitable[str]], int] = {
            self._whole: 38,
            self._left: 8,
            self._cancelled: 4,
            self._late: 3,
            self._bad: 4,
            self._adapter: 2,
            self._structured: 2,
            self._slow: 1,
            self._http: 8,
            self._http_streamed: 4,
            self._http_left: 4,
            self._http_bad: 6,
            self._http_replayed: 3,
            self._http_structured: 2,
            self._framed: 6,
            self._framed_cancelled: 3,
            self._framed_bad: 2,
        }
        self._kinds, self._weights = list(shares), list(shares.values())

    async def ask(self) -> None:
        (kind,) = self._rng.choices(self._kinds, self._weights)
        try:
            self._ends[await kind()] += 1
        except LLMServeError as error:
            self._ends[type(error).__name__] += 1
        except (aiohttp.ClientError, TargetError) as error:
            raise TargetError(f"{kind.__name__}: {error}") from error

    def _request(self, adapter: str | None = None, deadline: float | None = None, **sampling: Any) -> GenerationRequest:
        wanted = Sampling(**({"max_tokens": TOKENS, "ignore_eos": True} | sampling))
        return GenerationRequest(PROMPT, tenant=f"tenant {self._rng.random()}", adapter=adapter, deadline=deadline, sampling=wanted)

    # In process

    async def _whole(self) -> str:
        await self._manager.generate(self._request())
        return "answered"

    async def _left(self) -> str:
        task = asyncio.create_task(self._whole())
        await asyncio.wait([task], timeout=self._rng.random() * LONGEST_SECONDS)
        task.cancel()
        with suppress(asyncio.CancelledError):
            return await task
        return "left"

    async def _cancelled(self) -> str:
        token = CancellationToken()
        asyncio.get_running_loop().call_later(self._rng.random() * LONGEST_SECONDS, token.cancel, "enough")
        await self._manager.generate(self._request(), token)
        return "answered"

    async def _late(self) -> str:
        await self._manager.generate(self._request(deadline=DEADLINE_SECONDS, max_tokens=ENDLESS_TOKENS))
        return "answered"

    async def _bad(self) -> str:
        await self._manager.generate(self._request(stop_token_ids=(10**9,)))
        return "answered"

    async def _adapter(self) -> str:
        await self._manager.generate(self._request(adapter=f"adapter {self._rng.random()}"))
        return "answered"

    async def _structured(self) -> str:
        schema = {"type": "object", "properties": {f"p{self._rng.random()}": {"type": "integer"}}}
        await self._manager.generate(self._request(structured_outputs=StructuredOutputs.json(schema)))
        return "answered"

    async def _slow(self) -> str:
        async with self._manager.stream(self._request()) as stream:
            async for _ in stream:
                await asyncio.sleep(SLOW_SECONDS)
        return "answered slowly"

    # Over HTTP

    async def _post(self, path: str, body: Any, **headers: str) -> str:
        async with self._session.post(path, json=body, headers={"X-Request-Id": f"id-{self._rng.random()}", **headers}) as response:
            await response.read()
            return f"HTTP {response.status}"

    def _body(self, **more: Any) -> dict[str, Any]:
        return {"prompt": "hi", "max_tokens": TOKENS, "ignore_eos": True, "user": f"user {self._rng.random()}", **more}

    async def _http(self) -> str:
        return await self._post("/v1/completions", self._body(n=2, logprobs=2))

    async def _http_streamed(self) -> str:
        return await self._post("/v1/completions", self._body(stream=True)) + ", streamed"

    async def _http_left(self) -> str:
        """Disconnect in the middle of a stream."""
        async with self._session.post("/v1/completions", json=self._body(stream=True, max_tokens=ENDLESS_TOKENS)) as response:
            await response.content.readany()
            response.close()
            return f"HTTP {response.status}, left"

    async def _http_bad(self) -> str:
        path, body = self._rng.choice(BAD_BODIES)(self._rng.random())
        return await self._post(path, body)

    async def _http_replayed(self) -> str:
        """Repeat a request with its key, then use the key with another body."""
        key, body = f"key-{self._rng.random()}", self._body()
        first = await self._post("/v1/completions", body, **{"Idempotency-Key": key})
        again = await self._post("/v1/completions", body, **{"Idempotency-Key": key})
        other = await self._post("/v1/completions", self._body(), **{"Idempotency-Key": key})
        return f"{first}, sent again {again}, another {other}"

    async def _http_structured(self) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "title": f"{self._rng.random()}"}}}
        return await self._post("/v1/completions", self._body(response_format=form)) + ", structured"

    # Over frames

    async def _framed(self) -> str:
        await self._socket.generate(self._request())
        return "answered over frames"

    async def _framed_cancelled(self) -> str:
        token = CancellationToken()
        asyncio.get_running_loop().call_later(self._rng.random() * LONGEST_SECONDS, token.cancel, "enough")
        await self._socket.generate(self._request(max_tokens=ENDLESS_TOKENS), token)
        return "answered over frames"

    async def _framed_bad(self) -> str:
        await self._socket.generate(self._request(adapter=f"adapter {self._rng.random()}"))
        return "answered over frames"
