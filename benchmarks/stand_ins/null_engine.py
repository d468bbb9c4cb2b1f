"""An engine and a server that do no work, to measure the cost of their callers."""

import asyncio
import multiprocessing
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import anyio
import anyio.abc
import anyio.to_thread
import attrs

from llmserve.engine import EngineInfo, EnginePrompt, EngineStatistics, Sink
from llmserve.request import Delta, GenerationRequest, Sampling

VOCABULARY = 32_000


@attrs.define
class NoEngine:
    """Yields a token per open request at each turn of the loop, or every `pause` seconds."""

    text: str = ""
    pause: float = 0.0
    _open: dict[str, tuple[Sink, int]] = attrs.field(factory=dict)
    _steps: int = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(name="nothing", version="1", model="nothing", max_model_len=2**20, vocab_size=VOCABULARY, max_num_seqs=4096)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        token, last = Delta(self.text, (1,)), Delta(self.text, (1,), "length")
        while True:
            await anyio.sleep(self.pause)
            self._steps += 1
            for request_id, (sink, left) in list(self._open.items()):
                if left > 1:
                    self._open[request_id] = (sink, left - 1)
                    sink.put(token)
                else:
                    del self._open[request_id]
                    sink.put(last)

    def kill(self) -> None:
        """Do nothing, because the engine never hangs."""

    async def tokenize(self, request: GenerationRequest) -> EnginePrompt:
        return EnginePrompt(token_ids=request.prompt if isinstance(request.prompt, tuple) else (1,))

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> None:
        """Return no parser: answers are text."""

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return ""

    async def submit(self, request_id: str, prompt: EnginePrompt, sampling: Sampling, priority: int, sink: Sink) -> None:
        self._open[request_id] = (sink, sampling.max_tokens or 1)

    async def abort(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(steps=self._steps, running=len(self._open))

    def watch(self, stepped: Callable[[], None]) -> None:
        """Do nothing, because the steps have no meaning."""

    async def suspects(self, step_seconds: float) -> list[str]:
        return []

    def check_health(self) -> None:
        """Do nothing, because the engine is always healthy."""


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"nothing","object":"model"}]}'


def _event(data: bytes) -> bytes:
    frame = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(frame), frame)


# The length of vLLM's chunk for one token.
CHUNK = _event(
    b'{"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,"model":"nothing",'
    b'"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}'
)
END = _event(b"[DONE]") + b"0\r\n\r\n"
# The server's own count, for clients that would otherwise tokenize every text.
USAGE = (
    b'{"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,"model":"nothing",'
    b'"choices":[],"usage":{"prompt_tokens":16,"completion_tokens":%d,"total_tokens":%d}}'
)


class _Connection(asyncio.Protocol):
    """A connection that answers with one write per token, at each turn of the event loop."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if length is not None and len(body) < int(length[1]):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(MODELS) + MODELS)
            return
        wanted = re.search(rb'"max_tokens": *(\d+)', body)
        self._transport.write(HEAD)
        tokens = int(wanted[1]) if wanted else 1
        self._end = _event(USAGE % (tokens, 16 + tokens)) + END
        self._next(tokens)

    def _next(self, left: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(CHUNK if left else self._end)
        if left:
            asyncio.get_running_loop().call_soon(self._next, left - 1)


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve_until_closed(pipe))


async def _serve_until_closed(pipe: Connection) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    pipe.send(server.sockets[0].getsockname()[1])
    # Block a thread until the parent closes its end, or dies.
    await anyio.to_thread.run_sync(_wait_for_the_end, pipe)


def _wait_for_the_end(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        return


@asynccontextmanager
async def no_server() -> AsyncIterator[str]:
    """Start a server with the model "nothing" in a separate process, and yield its URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield f"http://127.0.0.1:{await anyio.to_thread.run_sync(ours.recv)}"
    finally:
        ours.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(process.join, 5.0)
