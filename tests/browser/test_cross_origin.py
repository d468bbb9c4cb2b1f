"""A page of another origin streams a chat through a real nginx with its defaults."""

import asyncio
import contextlib
import functools
import http.server
import itertools
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import attrs
import pytest
from engines import ScriptedEngine
from http_support import running_server
from support.processes import free_port

from llmserve import Delta

pytestmark = pytest.mark.browser
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# A chat has 202 events: its role, its tokens and [DONE].
TOKENS, SEPARATE = 200, 190
# Only what nginx needs to run beside the system's nginx, as the test's user. Everything about
# proxying is nginx's default.
CONFIG = """
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1; {user}
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{server}; }} }}
}}
"""
# What the page reads, piece by piece. The page asks for each further token after it has read the
# previous one.
STREAM = """
async ([url, tokens]) => {
  const body = JSON.stringify({messages: [{role: "user", content: "hi"}], max_tokens: tokens, ignore_eos: true, stream: true})
  const headers = {"Content-Type": "application/json", "X-Stainless-Lang": "js"}
  const answer = fetch(url + "/v1/chat/completions", {method: "POST", headers, body, signal: AbortSignal.timeout(60000)})
  await more()
  const response = await answer
  const reader = response.body.getReader(), reads = []
  for (;;) {
    const {done, value} = await reader.read()
    if (done) return {status: response.status, id: response.headers.get("X-Request-Id"), reads}
    reads.push(new TextDecoder().decode(value))
    await more()
  }
}"""


@contextlib.contextmanager
def page(folder):
    """The origin of an empty page."""
    (folder / "index.html").write_text("<!doctype html><title>Page</title><link rel=icon href=data:,>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def running(command, ready):
    """A process that is ready when it answers at the address `ready`."""
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, command
            assert time.monotonic() < end, command
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    with page(tmp_path_factory.mktemp("page")) as url:
        yield url


@contextlib.contextmanager
def nginx(port):
    """The address of an nginx before a server of this port."""
    proxy = free_port()
    # Use a folder that nginx's worker may enter, even as another user.
    with tempfile.TemporaryDirectory(prefix="llmserve-nginx-") as name:
        config = Path(name) / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(CONFIG.format(folder=name, port=proxy, server=port, user=user))
        url = f"http://127.0.0.1:{proxy}"
        with running([NGINX, "-p", name, "-c", config], f"{url}/health"):
            yield url


@pytest.fixture(scope="module")
def through_nginx(origin):
    """The address of an nginx before a server program that allows the page's origin."""
    port = free_port()
    serve = [sys.executable, "-m", "frontends.aiohttp_app", "--engine", "simulated", "--model", "sim", "--port", str(port)]
    with running([*serve, "--allowed-origin", origin], f"http://127.0.0.1:{port}/health"), nginx(port) as url:
        yield url


class Roomy(ScriptedEngine):
    @property
    def info(self):
        return attrs.evolve(super().info, max_model_len=1000)


@contextlib.contextmanager
def scripted(origin):
    """The port of a server in a thread, and a function that makes its one request's next token."""
    engine = Roomy()
    ports, ended, made = queue.Queue(), asyncio.Event(), itertools.count(1)

    async def serve():
        async with running_server(engine, app={"origins": [origin]}) as server:
            ports.put((asyncio.get_running_loop(), int(server.url.rsplit(":", 1)[1])))
            await ended.wait()

    async def one_more():
        while not engine.sinks:
            await asyncio.sleep(0.001)
        (sink,) = engine.sinks.values()
        if (number := next(made)) <= TOKENS:
            sink.put(Delta(f"{number} ", (number,), finish_reason="length" if number == TOKENS else None))

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, port = ports.get(timeout=60)

    def more():
        # Do not wait for the token: playwright calls this in the thread that also lets the page's
        # requests through.
        asyncio.run_coroutine_threadsafe(one_more(), loop)

    yield port, more
    loop.call_soon_threadsafe(ended.set)
    thread.join(60)


def test_a_page_of_another_origin_streams_a_chat_and_nginx_passes_each_event_on(reader, origin):
    """The engine waits until the page has read a token, so the machine's speed is irrelevant."""
    with scripted(origin) as (port, more), nginx(port) as url:
        reader.page.goto(origin)
        reader.page.expose_function("more", more)
        found = reader.page.evaluate(STREAM, [url, TOKENS])
    text = "".join(found["reads"])
    assert found["status"] == 200
    assert found["id"]
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("data: ") == TOKENS + 2
    # The role comes with the first token, and the end with the last one.
    assert len(found["reads"]) >= SEPARATE
    assert not reader.errors


def test_only_pages_of_the_origins_that_the_server_program_allows_get_an_answer(reader, origin, through_nginx, tmp_path):
    reader.page.expose_function("more", lambda: None)
    reader.page.goto(origin)
    assert reader.page.evaluate(STREAM, [through_nginx, 2])["status"] == 200
    assert not reader.errors
    with page(tmp_path) as other:
        reader.page.goto(other)
        assert reader.page.evaluate(f"(given) => ({STREAM})(given).catch((error) => error.name)", [through_nginx, 2]) == "TypeError"
        assert any("CORS" in error for error in reader.errors)
