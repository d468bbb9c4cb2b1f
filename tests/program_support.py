"""A server that runs as its own program on the simulated engine, and a client for it."""

import asyncio
import json
import os
import re
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import psutil

# Bounds of waits that an event ends. A real engine starts in half a minute, and in minutes beside
# other programs.
START_SECONDS = 600
PATIENCE = 60
MODULE = [sys.executable, "-m", "frontends.aiohttp_app"]
SOCKET = [sys.executable, "-m", "frontends.socket_app"]


SIMULATED = ("--engine", "simulated", "--model", "sim")


@asynccontextmanager
async def program(tmp_path, *arguments, until="  ready  ", module=(*MODULE, "--port", "0"), engine=SIMULATED):
    """Run a server; yield it, its address and the lines that it has printed.

    The engine is the simulated one by default. Without a `tmp_path` the server uses the user's own
    cache.
    """
    command = [*module, *engine, *arguments]
    environment = {**os.environ, **({"LLMSERVE_CACHE": str(tmp_path)} if tmp_path else {})}
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    lines = []
    try:
        with anyio.fail_after(START_SECONDS):
            while not lines or until not in lines[-1]:
                lines.append((await process.stderr.readline()).decode())
                # An explicit raise, because `python -O` removes `assert`, and the loop would then
                # not end.
                if not lines[-1]:
                    raise AssertionError("the server ended early: " + "".join(lines))
        url = re.search(r"\w+://\S+", lines[0])[0]
        yield process, url, lines
    finally:
        with suppress(psutil.NoSuchProcess):
            # The engine's processes outlive a killed host, and hold its standard error open. Python's
            # resource tracker removes their shared memory, and then ends by itself.
            one: Any
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if one is process or "multiprocessing.resource_tracker" not in " ".join(one.cmdline()):
                        one.kill()
        lines += (await process.stderr.read()).decode().splitlines()
        await process.wait()
        # Otherwise the transport closes itself when it is collected, after the loop, with a
        # warning.
        process._transport.close()  # type: ignore[attr-defined]  # asyncio has no public way


async def fetch(url, body=None, headers=None, timeout=PATIENCE, method=None):
    def get():
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})}, method=method), timeout=timeout
            ) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return await anyio.to_thread.run_sync(get)


def workers_of(process):
    """Return the spawned processes that have, or may have, clients' connections."""
    found = []
    for child in psutil.Process(process.pid).children():
        # A process that has just died has no command line any more.
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


async def metrics(url):
    return json.loads((await fetch(f"{url}/metrics.json"))[1])


async def until(url, wanted, patience=PATIENCE):
    """Return the metrics once they satisfy the condition. A dying worker may drop a request."""
    with anyio.fail_after(patience):
        while True:
            with suppress(OSError):
                if wanted(found := await metrics(url)):
                    return found
            await anyio.sleep(0.02)


class Streams:
    """Connections that each read one endless answer."""

    def __init__(self, url):
        self._port = int(url.rsplit(":", 1)[1])
        self.open = []

    async def begin(self, max_tokens=2000, prompt="hi"):
        stream = await anyio.connect_tcp("127.0.0.1", self._port)
        self.open.append(stream)
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}).encode()
        await stream.send(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = await stream.receive()
        assert head.startswith(b"HTTP/1.1 200"), head
        return stream

    def held_by(self, process):
        """Return how many of the connections end in this process."""
        ports = {stream.extra(anyio.abc.SocketAttribute.local_port) for stream in self.open}
        return sum(bool(connection.raddr) and connection.raddr.port in ports for connection in process.net_connections("tcp"))

    async def __aenter__(self):
        return self

    async def end(self, *_):
        for stream in self.open:
            await stream.aclose()

    __aexit__ = end


async def read_to_end_of_answer(stream):
    found = b""
    with anyio.move_on_after(PATIENCE):
        try:
            while b"[DONE]" not in found:
                found += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
    return found


def connections(worker):
    """Return the number of a process's client connections; 0 if it has ended since."""
    with suppress(psutil.NoSuchProcess):
        return sum(one.status == "ESTABLISHED" for one in worker.net_connections("tcp"))
    return 0
