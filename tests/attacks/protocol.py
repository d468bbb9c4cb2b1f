"""Malformed requests, and requests that two servers could read differently, with allowed statuses.

Rows H1 to H13 and H16 to H18 of the attack table (docs/reliability.md). None stands for a
connection that is closed without an answer.
"""

BODY = b'{"prompt": "hi", "max_tokens": 2}'
TYPE = b"Content-Type: application/json\r\n"


def post(headers=b"", body=BODY, length=True, version=b"HTTP/1.1", host=b"Host: x\r\n", target=b"/v1/completions"):
    counted = b"Content-Length: %d\r\n" % len(body) if length else b""
    return b"POST " + target + b" " + version + b"\r\n" + host + TYPE + counted + headers + b"\r\n" + body


def get(target=b"/v1/models", host=b"Host: x\r\n", version=b"HTTP/1.1", headers=b"", method=b"GET"):
    return method + b" " + target + b" " + version + b"\r\n" + host + headers + b"\r\n"


def chunked(chunks, headers=b"Transfer-Encoding: chunked\r\n"):
    return post(headers, chunks, length=False)


GOOD_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

LENGTHS = [
    (post(b"Transfer-Encoding: chunked\r\n", GOOD_CHUNKS), {400}),
    (post(b"Content-Length: %d\r\n" % len(BODY)), {400}),
    (post(b"Content-Length: 5\r\n"), {400}),
    *(
        (post(b"Content-Length: " + value + b"\r\n", length=False), {400})
        for value in (b"+33", b"0x21", b"3_3", b"-1", b"33 33", b"33,33", b"")
    ),
    (post(b"Content-Length: %d\r\n" % 2**64, length=False), {400, 413}),
    (chunked(GOOD_CHUNKS, b"Transfer-Encoding: xchunked\r\n"), {400}),
    (chunked(GOOD_CHUNKS, b"Transfer-Encoding: chunked, identity\r\n"), {400}),
    (chunked(GOOD_CHUNKS, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), {400}),
    (chunked(GOOD_CHUNKS, b"Transfer-Encoding: \x0bchunked\r\n"), {400}),
]
OLD_CODINGS = [
    (post(b"Transfer-Encoding: chunked\r\n", GOOD_CHUNKS, length=False, version=b"HTTP/1.0"), {400}),
    (post(b"Transfer-Encoding: identity\r\n", version=b"HTTP/1.0"), {400}),
]
CHUNKS = [
    (chunked(b"0x7\r\n{}     \r\n0\r\n\r\n"), {400}),
    (chunked(b"00000000000000021\r\n" + BODY + b"\r\n0\r\n\r\n"), {200, 400}),
    (chunked(b"fffffffffffffffff\r\n" + BODY), {400, 413}),
    (chunked(b"21\n" + BODY + b"\n0\n\n"), {400}),
    (chunked(b"21;a=\n\r\n" + BODY + b"\r\n0\r\n\r\n"), {400}),
    (chunked(b"-1\r\n" + BODY), {400}),
    (chunked(b"g\r\n"), {400}),
    (chunked(b"\r\n\r\n"), {400}),
]
LINES = [
    (get(headers=b"A: b\n"), {400}),
    (b"GET /v1/models HTTP/1.1\nHost: x\n\n", {400}),
    (get(headers=b"A: b\r\n c\r\n"), {400}),
    (get(headers=b"A : b\r\n"), {400}),
    (get(headers=b"A: b\x00c\r\n"), {400}),
    (get(headers=b"no colon\r\n"), {400}),
    (get(headers=b": empty\r\n"), {400}),
    (get(version=b"HTTP/1.2"), {400}),
    (get(version=b"HTTP/2.0"), {400}),
    (get(version=b"HTTP/11"), {400}),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200 + b"\r\n\r\n", {400}),
    (get(method=b"get"), {400, 405}),
    (b"\xff" * 1024 + b"\r\n\r\n", {400}),
    (b"\r\n" * 10 + get(), {200, 400}),
]
HOSTS = [
    (get(host=b""), {400}),
    (get(host=b"Host: x\r\nHost: y\r\n"), {400}),
    *(
        (get(host=b"Host: " + value + b"\r\n"), {400})
        for value in (
            b"x/?foo",
            b"x@y",
            b"/v1",
            b"x?y",
            b"x#y",
            b"x\\y",
            b"x y",
            b"[::1",
            b"x:y",
            b"",
            b"\xff",
            b"x:123456",
            b"x,y",
            b"[x]",
        )
    ),
    *((get(host=b"Host: " + value + b"\r\n"), {200}) for value in (b"localhost", b"127.0.0.1:80", b"[::1]:80", b"a.b-c.example.", b"a_b")),
]
TARGETS = [
    (get(b"http://x/v1/models"), {400}),
    (get(b"http://evil/v1/models"), {400}),
    (get(b"*"), {400}),
    (get(b"*", method=b"OPTIONS"), {400}),
    (get(b"x:80", method=b"CONNECT"), {400}),
    *(
        (get(target), {404, 400})
        for target in (b"//v1/models", b"/v1/../metric", b"/v1/models;x", b"/V1/models", b"/v1%2fmodels", b"/v1/models%00", b"/etc/passwd")
    ),
    (get(b"/v1/../metrics"), {404}),
]
SIZES = [
    (get(headers=b"A: " + b"x" * 9000 + b"\r\n"), {400}),
    (get(headers=b"".join(b"A%d: b\r\n" % number for number in range(10_000))), {400}),
    (get(b"/" + b"x" * 9000), {400, 414}),
    (post(b"Content-Length: 10000000000\r\n", length=False), {413}),
    (post(b"Content-Length: 4194305\r\n", b"", length=False), {413}),
    (chunked(b"100000\r\n" + b" " * 2**20 + b"\r\n" + b"400000\r\n" + b" " * 2**22), {413}),
    (chunked(b"2\r\n  \r\n" * 100_000 + b"0\r\n\r\n"), {400}),
    (chunked(b"1;" + b"x" * 9000 + b"\r\n \r\n0\r\n\r\n"), {400}),
    (chunked(GOOD_CHUNKS[:-2] + b"A: b\r\n" * 10_000 + b"\r\n"), {400}),
]
CODINGS = [
    *((post(b"Content-Encoding: " + coding + b"\r\n"), {415}) for coding in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"x")),
    (post(b"Content-Encoding: identity\r\n"), {200}),
]
METHODS = [
    *((get(method=method), {405}) for method in (b"DELETE", b"PUT", b"PATCH", b"TRACE", b"PURGE", b"PROPFIND")),
    (get(b"/v1/completions"), {405}),
    (get(headers=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), {200, 400, 426}),
    (get(headers=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"), {200, 400, 426}),
]
TYPES = [
    *(
        (post().replace(b"application/json", kind), {415})
        for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=" + b"-" * 4000, b"", b"x")
    ),
    (post().replace(b"application/json", b"application/json; charset=utf-8"), {200}),
]
EXPECTATIONS = [
    (post(b"Expect: junk\r\n"), {417}),
    (post(b"Expect: 100-continue\r\nContent-Length: 5000000\r\n", b"", length=False), {413}),
]
ORIGINS = [
    (get(headers=b"Origin: https://evil.example\r\n"), {403}),
    (get(headers=b"Origin: null\r\n"), {403}),
    (get(headers=b"Origin: http://x\r\n"), {200}),
    (get(b"/v1/completions", method=b"OPTIONS", headers=b"Origin: http://evil\r\nAccess-Control-Request-Method: POST\r\n"), {403, 405}),
]

CORPUS = [
    *LENGTHS, *OLD_CODINGS, *CHUNKS, *LINES, *HOSTS, *TARGETS, *SIZES, *CODINGS, *METHODS, *TYPES, *EXPECTATIONS, *ORIGINS,
]  # fmt: skip
