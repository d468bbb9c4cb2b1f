"""Servers at every form of URL, with keys, other paths and other bodies; nothing keeps a secret."""

import asyncio
import base64
import contextlib
import gzip
import http.server
import json
import threading
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.arguments import recorded_command
from benchmarks.targets import TargetError
from benchmarks.targets import server as server_module
from benchmarks.targets.server import ClientOptions, find_model, open_session, parse_server, without_credentials

STREAM = b"".join(b'data: {"choices": [{"text": "x", "delta": {"content": "x"}}]}\n\n' for _ in range(4)) + b"data: [DONE]\n\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Has its API below `prefix`, answers requests that show `secret`, and quotes any other's."""

    protocol_version = "HTTP/1.1"
    prefix = "/v1"
    secret = ""
    seen: list[Any]

    def do_GET(self):
        known = self.path == f"{self.prefix}/models"
        self.answer(200 if known else 404, b'{"data": [{"id": "scripted", "object": "model"}]}' if known else b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body))
        given = self.headers.get("Authorization", "")
        if given != self.secret:
            self.answer(401, json.dumps({"error": {"message": f"wrong key: {given}"}}).encode())
        else:
            self.answer(200, STREAM)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(**fields):
    """Yield the requests that the server got, and its address."""
    seen: list[Any] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"seen": seen, **fields})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield seen, f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def found(server, model):
    return asyncio.run(find_model(server, model))


@pytest.mark.parametrize(
    ("url", "api", "root"),
    [
        ("http://host:8000", "http://host:8000/v1/", "http://host:8000/"),
        ("http://host:8000/", "http://host:8000/v1/", "http://host:8000/"),
        ("http://host:8000/v1", "http://host:8000/v1/", "http://host:8000/"),
        ("http://host:8000/v1/", "http://host:8000/v1/", "http://host:8000/"),
        ("https://host/prefix/", "https://host/prefix/", "https://host/prefix/"),
        ("https://host/prefix/v1", "https://host/prefix/v1/", "https://host/prefix/"),
        ("https://user:p%40ss@host/a%20b/v1", "https://host/a%20b/v1/", "https://host/a%20b/"),
    ],
)
def test_a_url_is_read_as_openai_s_clients_read_it(url, api, root):
    server = parse_server(url)
    assert (str(server.api), str(server.root)) == (api, root)
    assert parse_server(server.url) == server


@pytest.mark.parametrize("url", ["http://", "http://host:99999", "https://user:secret@host/v1?x=1", "http://user:secret@[::1/v1"])
def test_an_invalid_url_is_named_without_its_password(url):
    with pytest.raises(TargetError, match="is not a valid server URL") as caught:
        parse_server(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "path", "endpoint"),
    [
        ("/v1", "", "/v1/"),
        ("/v1", "/v1/", "/v1/"),
        ("/prefix", "/prefix/", "/prefix/"),
        ("/prefix/v1", "/prefix/v1", "/prefix/v1/"),
        ("/prefix/v1", "/prefix", "/prefix/v1/"),
    ],
)
def test_the_api_of_a_url_is_the_one_that_has_models(prefix, path, endpoint):
    with serving(prefix=prefix) as (_, address):
        server, model = found(parse_server(f"http://{address}{path}"), None)
    assert (server.api.path, model) == (endpoint, "scripted")


def test_a_server_that_lists_no_models_needs_a_model():
    with serving(prefix="/elsewhere") as (_, address):
        server = parse_server(f"http://{address}/v1")
        with pytest.raises(TargetError, match="HTTP 404: pass --model"):
            found(server, None)
        assert found(server, "named") == (server, "named")


BASIC = "Basic " + base64.b64encode(b"user:pw-of-user").decode()
RUN = ("--concurrency", "1", "--requests", "1", "--per-client", "1", "--output-tokens", "4", "--in-step", "--no-ceiling")


def files(path):
    """Return everything that a run wrote."""
    texts = [path.read_text()]
    return "\n".join(texts + [gzip.decompress(file.read_bytes()).decode() for file in path.parent.glob("*.gz")])


@pytest.mark.parametrize("wrong", [False, True], ids=["accepted", "refused and quoted"])
@pytest.mark.parametrize(
    ("user", "arguments", "key", "sent"),
    [
        ("", ["--api-key", "sk-given"], "sk-environment", "Bearer sk-given"),
        ("", [], "sk-environment", "Bearer sk-environment"),
        ("user:pw-of-user@", [], "sk-environment", BASIC),
        ("", ["--head=Authorization: Token tok-en"], None, "Token tok-en"),
    ],
    ids=["option", "environment", "URL", "header"],
)
def test_secrets_are_sent_and_kept_nowhere(user, arguments, key, sent, wrong, tmp_path, call, monkeypatch):
    """Regression: the password of a URL was in run.json."""
    if key is None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    out = tmp_path / "run.json"
    with serving(secret="another" if wrong else sent) as (_, address):
        ended = call(main, "run", "--target", f"http://{user}{address}/v1", *arguments, *RUN, "--out", str(out))
    written = ended.stdout + ended.stderr
    if wrong:
        assert ended.returncode == 2
        assert "HTTP 401: wrong key: " in ended.stderr
        assert "***" in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr
        written += files(out)
        facts = json.loads(out.read_text())
        assert facts["provenance"]["model"] == "scripted"
        assert [point["target"] for point in facts["points"]] == [f"http://{address}/v1"]
    for secret in ("sk-given", "sk-environment", "tok-en", "pw-of-user", BASIC.split()[1]):
        assert secret not in written


def test_a_run_may_use_another_path_and_body(tmp_path, call):
    body = '{"ignore_eos": null, "stream_options": null, "top_k": 5}'
    arguments = ["--chat", "--endpoint", "/gateway/chat", "--extra-body", body, "--natural-lengths", "--out", str(tmp_path / "run.json")]
    with serving() as (seen, address):
        ended = call(main, "run", "--target", f"http://{address}", *RUN, *arguments)
    assert ended.returncode == 0, ended.stderr
    path, sent = seen[-1]
    assert path == "/gateway/chat"
    assert sent["messages"][0]["content"].count(" ") == 127
    assert sent["top_k"] == 5
    assert not {"ignore_eos", "stream_options", "priority", "prompt"} & set(sent)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--header", "novalue"], "--header: write NAME:VALUE"),
        (["--extra-body", "[]"], "--extra-body: '[]': write a JSON object"),
        (["--extra-body", "{"], "--extra-body: '{' is not JSON"),
        (["--chat", "--target", "inprocess"], "--chat, --tokenizer, --endpoint and --extra-body need targets over HTTP"),
        (["--target", "ftp://user:secret@host"], "not 'ftp://host'"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_wrong_options_are_one_clear_line(arguments, words, call, tmp_path):
    ended = call(main, "run", "--concurrency", "1", *arguments, "--out", str(tmp_path / "run.json"))
    assert ended.returncode == 2
    assert words in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        (["--target", "http://u:p@h/v1,https://v:q@i"], "--target 'http://***@h/v1,https://***@i'"),
        (["--api-key", "k", "--out", "r"], "--api-key '***' --out r"),
        (["--api=k", "--header=X-Key: k", "--head", "A:b:c"], "'--api=***' '--header=X-Key:***' --head 'A:***'"),
    ],
)
def test_a_recorded_command_has_no_secrets(given, recorded):
    assert recorded_command(given) == f"python -m benchmarks {recorded}"


def test_only_credentials_are_left_out_of_a_text():
    assert without_credentials("at http://u:p@ss@h/v1: x@y") == "at http://h/v1: x@y"


def test_an_options_text_has_no_secrets():
    server = parse_server("https://user:pw-of-user@host", ClientOptions(api_key="sk-given", headers={"X": "tok-en"}))
    assert not any(secret in repr(server) for secret in ("pw-of-user", "sk-given", "tok-en"))


def test_a_connection_that_a_server_may_close_is_not_used_again(monkeypatch):
    """Regression: vLLM's server closes connections that are idle for 5 s, and requests that were sent then failed."""
    assert server_module.IDLE_SECONDS < 5
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.01)

    async def connections():
        peers = set()

        async def answer(reader, writer):
            with contextlib.suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    peers.add(writer.get_extra_info("peername"))
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with open_session(parse_server(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")) as session:
            for _ in range(2):
                async with session.get("models") as response:
                    await response.read()
                await asyncio.sleep(0.1)
        listener.close()
        return len(peers)

    assert asyncio.run(connections()) == 2
