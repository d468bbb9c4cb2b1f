"""The state that every attack must leave: the same answer, a ready server, no held resources."""

import msgspec

ANSWER = {"prompt": "canary", "max_tokens": 8, "temperature": 0, "seed": 1}
# Text that no error may reveal to a client.
SECRETS = (b"Traceback", b"site-packages", b".py", b"0x7f", b"aiohttp", b"msgspec", b"/root", b"/home", b"object at")


async def probe(server):
    """Return the canary's text."""
    status, answer, _ = await server.post("/v1/completions", ANSWER)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def check_error(status, raw, expected, what):
    """Check a client error in OpenAI's format, short and with little of the client's input."""
    assert status in expected, (what, status, raw[:300])
    for secret in SECRETS:
        assert secret not in raw, (what, raw)
    error = msgspec.json.decode(raw)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"].encode()) <= 1024, what
    assert "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" not in error["message"]
    return error
