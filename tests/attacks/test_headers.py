"""Headers with any content: a success or a client error, and the log has the sent status."""

import json
import socket

import anyio
import anyio.to_thread
import pytest
from attacks.canary import probe
from http_support import running_server
from hypothesis import given
from hypothesis import strategies as st
from program_support import fetch, program

from frontends.access.api_keys import Keys
from frontends.access.control import Access

pytestmark = pytest.mark.anyio

BODY = b'{"prompt": "hi", "max_tokens": 1}'
# Headers that the server reads, and headers that its libraries may read.
NAMES = b"""
    Host Origin Authorization Idempotency-Key traceparent tracestate X-Request-Id X-Request-Timeout Content-Length
    Content-Type Content-Encoding Transfer-Encoding Accept Accept-Encoding Accept-Language Expect Connection Keep-Alive
    Upgrade Cookie Range If-Modified-Since If-None-Match Forwarded X-Forwarded-For X-Forwarded-Host Referer User-Agent TE
    Trailer Sec-WebSocket-Key Sec-Fetch-Site Date
""".split()
# Headers that announce a body and its length.
FRAMING = {b"Content-Length", b"Transfer-Encoding"}
VALUES = [
    *(b"", b" ", b"x", b"\xff\xfe", b"\xed\xa0\x80", "\u00e9".encode(), "\uff11".encode(), b"=,;", b",,,,", b"; ; ;", b"%00", b"\t"),
    *(b"http://[", b"http://]", b"http://[::1", b"http://[v1.a]", b"http://x:y", b"//", b"null", b"null, null", b"http://a http://b"),
    *(b"Bearer", b"Bearer \xff", b"Bearer " + b"x" * 5000, b"Basic \xff:", b"a=" + b"b;" * 3000, b"bytes=-1-", b"Sat, 99 Foo"),
    *(b"nan", b"inf", b"-inf", b"1e999", b"-1", b"0", b"1_0", b"9" * 5000, b"0x10"),
    *(b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"00-" + b"\xff" * 52),
    *(b"application/openmetrics-text; version=" + value for value in (b"", b"abc; escaping=foo", b"1..0", b"9" * 5000, b"99.99.99")),
    *("application/openmetrics-text; version=\uff11.0.0".encode(), b"application/openmetrics-text;=", b"text/plain; version=1.a"),
    *(b"application/openmetrics-text; version=1.0.0; escaping=allow-utf-8", b"text/plain;version=1.0.0;escaping=\xff"),
    *(b"application/json; charset=" + value for value in (b"", b"\xff", b"nonsense", b'"', b"utf-16")),
    *(b"multipart/form-data", b"websocket", b"100-continue", b"identity", b"gzip"),
    *(b"[::1%25eth0]", b"[fe80::1%eth0]", b"0.0.0.0:99999", b"127.0.0.1:", b"1.2.3.4.5"),
]
COMPLETIONS, METRICS, NOWHERE = (b"POST", b"/v1/completions", BODY), (b"GET", b"/metrics", b""), (b"GET", b"/nowhere", b"")
TARGETS = (COMPLETIONS, METRICS, NOWHERE)
# Headers that a scrape reads and a completion does not. Each header and each value goes to COMPLETIONS.
OF_METRICS = {b"Accept", b"Accept-Encoding"}


@pytest.fixture
def anyio_backend():
    return "asyncio"


def request(method, target, body, extra):
    """Return a request's head, where `extra` replaces the default headers."""
    usual = {b"Host": b"localhost", b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(body), b"Accept": b"text/plain"}
    given_ = {name for name, _ in extra}
    lines = [*((name, value) for name, value in usual.items() if name not in given_), *extra, (b"Connection", b"close")]
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, b"".join(b"%b: %b\r\n" % line for line in lines), body)


def status(port, sent, *, end=False):
    """Return the answer's status; None if the connection closes without an answer.

    With `end` the client stops sending, so that an announced body is incomplete.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(30)
        connection.sendall(sent)
        if end:
            connection.shutdown(socket.SHUT_WR)
        try:
            while data := connection.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
    return int(answer.split(b" ")[1]) if answer else None


def attack(port):
    def try_one(extra, targets):
        framing = any(name in FRAMING for name, _ in extra)
        for target in targets:
            found = status(port, request(*target, extra), end=framing)  # type: ignore[call-arg]  # mypy counts the items of targets of three kinds
            assert found is None or found < 500, (target, extra, found)

    for name in NAMES:
        for value in VALUES:
            try_one([(name, value)], TARGETS if name in OF_METRICS else [COMPLETIONS])

    line = st.tuples(
        st.sampled_from(NAMES), st.sampled_from(VALUES) | st.binary(max_size=40).map(lambda data: data.translate(None, b"\r\n\0"))
    )

    @given(st.lists(line, min_size=1, max_size=3))
    def anything(lines):
        try_one(lines, TARGETS)

    anything()


@pytest.mark.parametrize("keys", [None, Keys.single("x")])
async def test_no_header_makes_the_server_fail(keys, caplog):
    lines = []
    async with running_server(app={"log": lines.append, "access": Access(keys), "hosts": []}) as server:
        port = int(server.url.rsplit(":", 1)[1])
        await anyio.to_thread.run_sync(attack, port)
        if keys is None:
            await probe(server)
    assert len(lines) > 100
    # 499 where the client has gone before its answer, after announcing a body that it did not send.
    assert all(json.loads(line)["status"] < 500 for line in lines)
    assert "a handler failed" not in caplog.text


REFUSED = [
    ([(b"Origin", b"http://[")], 403),
    ([(b"Origin", b"http://localhost/")], 403),
    ([(b"Origin", b"localhost")], 403),
    ([(b"Origin", b"ftp://localhost")], 403),
    ([(b"Origin", b"http://localhost"), (b"Origin", b"http://evil.example")], 400),
    ([(b"Origin", b"http://localhost"), (b"Origin", b"http://localhost")], 400),
    ([(b"Origin", b"http://LOCALHOST")], 200),
    ([(b"Origin", b"https://localhost")], 200),
    ([(b"Content-Encoding", b"identity"), (b"Content-Encoding", b"gzip")], 400),
    ([(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")], 400),
    ([(b"X-Request-Timeout", b"1"), (b"X-Request-Timeout", b"2")], 400),
    ([(b"X-Request-Timeout", b"nan")], 400),
    ([(b"Expect", b"100-continue"), (b"Expect", b"junk")], 400),
    ([(b"Host", b"evil.example:8000"), (b"Origin", b"http://evil.example:8000")], 403),
    ([(b"Host", b"evil.example")], 403),
    ([(b"Host", b"localhost.evil.example")], 403),
    ([(b"Host", b"2130706433")], 403),
    ([(b"Host", b"127.1")], 403),
    ([(b"Host", b"named.example:8000"), (b"Origin", b"http://named.example:8000")], 200),
    ([(b"Host", b"NAMED.example.")], 200),
    ([(b"Host", b"127.0.0.1:8000")], 200),
    ([(b"Host", b"10.0.0.1")], 200),
    ([(b"Host", b"[::1]:8000")], 200),
    ([(b"Host", b"[::1:8000")], 400),
    ([(b"Host", b"LocalHost:1")], 200),
]


@pytest.mark.parametrize(("extra", "expected"), REFUSED)
async def test_a_refused_request_is_logged_with_its_status(extra, expected):
    lines = []
    async with running_server(app={"log": lines.append, "hosts": ["named.example"]}) as server:
        port = int(server.url.rsplit(":", 1)[1])
        sent = request(*TARGETS[0], extra)
        assert await anyio.to_thread.run_sync(status, port, sent) == expected
    assert [json.loads(line)["status"] for line in lines] == [expected]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"application/openmetrics-text; version=abc; escaping=foo", 400),
        (b"text/plain; version=1.x", 400),
        (b"application/openmetrics-text; version=1.0.0; charset=utf-8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", 200),
        (b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5", 200),
    ],
)
async def test_the_form_of_metrics_is_agreed_on(accept, expected):
    lines = []
    async with running_server(app={"log": lines.append, "log_probes": True}) as server:
        port = int(server.url.rsplit(":", 1)[1])
        sent = request(*TARGETS[1], [(b"Accept", accept)])
        assert await anyio.to_thread.run_sync(status, port, sent) == expected
    assert [json.loads(line)["status"] for line in lines] == [expected]


async def test_an_unexpected_failure_is_logged_as_500(monkeypatch, caplog):
    lines = []
    async with running_server(app={"log": lines.append}) as server:
        # Patched, because no known request causes such a failure.
        monkeypatch.setattr(server.manager, "check_health", lambda: 1 / 0)
        async with server.session.get("/health/ready") as response:
            assert response.status == 500
    assert [json.loads(line)["status"] for line in lines] == [500]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "names", "expected"),
    [
        ((), ("evil.example", "localhost", "127.0.0.1"), [403, 200, 200]),
        (("--workers", "2"), ("evil.example", "localhost"), [403, 200]),
        (("--allowed-host", "a.example", "--allowed-host", "b.example"), ("a.example", "b.example:1", "c.example"), [200, 200, 403]),
        (("--host", "0.0.0.0", "--insecure"), ("any.example",), [200]),
        (("--host", "0.0.0.0", "--insecure", "--allowed-host", "a.example"), ("any.example", "a.example"), [403, 200]),
    ],
)
async def test_a_server_without_authentication_refuses_other_host_names(tmp_path, arguments, names, expected):
    async with program(tmp_path, *arguments) as (_, address, _):
        url = address.replace("0.0.0.0", "127.0.0.1")
        found = [(await fetch(f"{url}/v1/models", headers={"Host": name, "Origin": f"http://{name}"}))[0] for name in names]
    assert found == expected


async def test_with_keys_any_name_is_answered(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSERVE_API_KEY", "secret")
    async with program(tmp_path) as (_, url, _):
        headers = {"Host": "any.example", "Authorization": "Bearer secret"}
        assert (await fetch(f"{url}/v1/models", headers=headers))[0] == 200
