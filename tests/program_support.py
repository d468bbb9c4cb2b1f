"""A server as a program of its own, on the simulated engine, and a client for it."""

import asyncio
import json
import os
import re
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

import anyio

MODULE = [sys.executable, "-m", "frontends.aiohttp_app"]
SOCKET = [sys.executable, "-m", "frontends.socket_app"]


@asynccontextmanager
async def program(tmp_path, *arguments, until="  ready  ", module=(*MODULE, "--port", "0")):
    """A running server on the simulated engine, its address, and the lines that it has printed."""
    command = [*module, "--engine", "simulated", "--model", "sim", *arguments]
    environment = {**os.environ, "LLMSERVE_CACHE": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    lines = []
    try:
        with anyio.fail_after(30):
            while not lines or until not in lines[-1]:
                lines.append((await process.stderr.readline()).decode())
                assert lines[-1], "the server ended early: " + "".join(lines)
        url = re.search(r"\w+://\S+", lines[0])[0]
        yield process, url, lines
    finally:
        if process.returncode is None:
            process.kill()
        lines += (await process.stderr.read()).decode().splitlines()
        await process.wait()
        # Without this the transport closes itself when collected, which is after the loop, with a warning.
        process._transport.close()


async def fetch(url, body=None):
    def get():
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return await anyio.to_thread.run_sync(get)
