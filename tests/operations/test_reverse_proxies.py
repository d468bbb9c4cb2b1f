"""A real nginx and a real Caddy, configured by docs/deploy, serve a stream event by event."""

import os
import pathlib
import shutil
import socket
import ssl
import tempfile
from contextlib import asynccontextmanager, suppress

import aiohttp
import anyio
import msgspec
import pytest
import trustme
from engines import ScriptedEngine
from http_support import running_server
from program_support import PATIENCE, program
from support.processes import free_port

from frontends.access.api_keys import add_key
from llmserve import Delta

pytestmark = pytest.mark.operations
FOLDER = pathlib.Path(__file__).parent.parent.parent / "docs/deploy"
NAME = "llm.example.com"
# The client's address. A proxy has 127.0.0.1, and an address in 127.0.0.0/8 needs no setup.
CLIENT = "127.0.0.2"
# A chat has these tokens after the role.
TOKENS = 50
# What nginx needs to run beside the system's nginx, as any user.
PLACES = """
    access_log off;
    client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;
    uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;
"""


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def replaced(text, changes):
    """Return the text after the changes; each old text must occur in it."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx_command(folder, port, server, more):
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{server}",
        "listen 443": f"listen 127.0.0.1:{port}",
        f"/etc/nginx/{NAME}.pem": f"{folder}/chain.pem",
        f"/etc/nginx/{NAME}.key": f"{folder}/key.pem",
        "http {": "http {" + PLACES.format(folder),
        # The test's own limit of open files may be lower.
        "worker_rlimit_nofile 65536;": "",
        "worker_connections 16384;": "worker_connections 256;",
    }
    config = folder / "nginx.conf"
    config.write_text(replaced((FOLDER / "nginx.conf").read_text(), {**changes, **more}))
    globals_ = f"daemon off; pid {folder}/pid; error_log stderr; {'user root;' if os.geteuid() == 0 else ''}"
    return [shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"), "-p", folder, "-c", config, "-g", globals_]


def caddy_command(folder, port, server, more):
    changes = {
        f"{NAME} {{": f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {folder}/chain.pem {folder}/key.pem",
        "127.0.0.1:8000": f"127.0.0.1:{server}",
    }
    own = f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system {folder}\n}}\n"
    config = folder / "Caddyfile"
    config.write_text(own + replaced((FOLDER / "Caddyfile").read_text(), {**changes, **more}))
    return ["caddy", "run", "--config", config, "--adapter", "caddyfile"]


class Local(aiohttp.abc.AbstractResolver):
    """Resolves each name to this machine."""

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self):
        pass


@asynccontextmanager
async def proxy(command_of, authority, server, more=None):
    """Run a proxy in front of the server at this port; yield a session whose paths are relative to the proxy."""
    port = free_port()
    # Use a folder that nginx's worker may enter, even as another user.
    with tempfile.TemporaryDirectory(prefix="llmserve-proxy-") as name:
        folder = pathlib.Path(name)
        certificate = authority.issue_cert(NAME)
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        for part in certificate.cert_chain_pems:
            part.write_to_path(folder / "chain.pem", append=True)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        command = command_of(folder, port, server, more or {})
        async with await anyio.open_process(command, stdout=None, stderr=None, env={**os.environ, "HOME": name}) as process:
            try:
                connector = aiohttp.TCPConnector(ssl=context, resolver=Local(), local_addr=(CLIENT, 0))
                async with aiohttp.ClientSession(f"https://{NAME}:{port}", connector=connector) as session:
                    await until_it_answers(session, process)
                    yield session
            finally:
                process.terminate()


async def until_it_answers(session, process):
    with anyio.fail_after(PATIENCE):
        while True:
            # An explicit raise, because `python -O` removes `assert`, and the loop would then not end.
            if process.returncode is not None:
                raise AssertionError("the proxy ended early")
            with suppress(aiohttp.ClientConnectionError):
                async with session.get("/metrics"):
                    return
            await anyio.sleep(0.05)


PROXIES = pytest.mark.parametrize("command_of", [nginx_command, caddy_command], ids=["nginx", "caddy"])


@asynccontextmanager
async def stream(session, engine):
    """Begin a chat, whose first token is `0 `."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put, engine, 0)
        async with session.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
            yield response


async def put(engine, number):
    with anyio.fail_after(PATIENCE):
        while not engine.sinks:
            await anyio.sleep(0.001)
    (sink,) = engine.sinks.values()
    sink.put(Delta(f"{number} ", (number,), finish_reason="length" if number == TOKENS - 1 else None))


async def read_until(response, text):
    found = b""
    with anyio.fail_after(PATIENCE):
        while text not in found:
            part = await response.content.readany()
            if not part:
                raise AssertionError(f"the stream ended before {text!r}: {found!r}")
            found += part
    return found


@PROXIES
async def test_each_token_arrives_before_the_next_one_is_made(command_of, authority):
    """The engine waits until the client has read a token, so the machine's speed is irrelevant."""
    engine = ScriptedEngine()
    async with running_server(engine) as server, proxy(command_of, authority, port_of(server.url)) as session:
        async with stream(session, engine) as response:
            for number in range(TOKENS):
                if number:
                    await put(engine, number)
                # The end comes with the last token.
                await read_until(response, b'"content":"%d "' % number if number < TOKENS - 1 else b"data: [DONE]\n\n")


@PROXIES
async def test_a_client_that_leaves_frees_the_engine(command_of, authority):
    engine = ScriptedEngine()
    async with running_server(engine) as server, proxy(command_of, authority, port_of(server.url)) as session:
        async with stream(session, engine) as response:
            await read_until(response, b'"content":"0 "')
            assert engine.held
            response.close()
        with anyio.fail_after(PATIENCE):
            while engine.held:
                await anyio.sleep(0.01)
        assert len(engine.aborted) == 1


def port_of(url):
    return int(url.rsplit(":", 1)[1])


# Changes that serve the server below /llm only.
BELOW = {
    nginx_command: {"location / {": "location = /none {", "# location /llm/": "location /llm/"},
    caddy_command: {"\treverse_proxy 127": "\treverse_proxy /llm/* 127"},
}


@PROXIES
@pytest.mark.parametrize("root", ["", "/llm"])
async def test_the_request_log_has_the_client_s_address_and_the_metrics_are_private(command_of, root, authority, tmp_path):
    log, keys = tmp_path / "requests.jsonl", tmp_path / "keys.toml"
    headers = {"Authorization": f"Bearer {add_key(keys, 'alice', {})}", "X-Request-Id": "one", "X-Forwarded-For": "192.0.2.1"}
    options = ("--api-keys", str(keys), "--trusted-proxy", "127.0.0.1", "--request-log", str(log), "--root-path", root)
    async with program(tmp_path, *options) as (_, url, _):
        async with proxy(command_of, authority, port_of(url), BELOW[command_of] if root else None) as session:
            request = {"prompt": "hi", "max_tokens": 1}
            async with session.post(f"{root}/v1/completions", json=request, headers=headers) as response:
                assert response.status == 200, await response.text()
            for path in ("/metrics", "/metrics.json", "/load"):
                async with session.get(root + path, headers=headers) as response:
                    assert response.status == 404
            async with session.get("/v1/models", headers=headers) as response:
                # Caddy answers 200 with no content where no site has the path.
                assert bool(await response.read() and response.status == 200) is not bool(root)
        line = await line_of(log, "one")
    assert (line["peer"], line["scheme"], line["key"]) == (CLIENT, "https", "alice")


async def line_of(log, name):
    """Return the line of the request log with this X-Request-Id."""
    with anyio.fail_after(PATIENCE):
        while True:
            lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
            for line in lines:
                if line.endswith(b"\n") and (decoded := msgspec.json.decode(line))["request"] == name:
                    return decoded
            await anyio.sleep(0.02)
