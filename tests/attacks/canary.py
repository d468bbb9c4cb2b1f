"""What every attack must leave as it was: an answer, a server that is up, and nothing held."""

import msgspec

ANSWER = {"prompt": "canary", "max_tokens": 8, "temperature": 0, "seed": 1}
# What no error tells a client.
SECRETS = (b"Traceback", b"site-packages", b".py", b"0x7f", b"aiohttp", b"msgspec", b"/root", b"/home", b"object at")


async def probe(server):
    """The canary's text."""
    status, answer, _ = await server.post("/v1/completions", ANSWER)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def check_error(status, raw, expected, what):
    """An error of the client's, told as OpenAI does, in a few words and none of the client's own but the first."""
    assert status in expected, (what, status, raw[:300])
    for secret in SECRETS:
        assert secret not in raw, (what, raw)
    error = msgspec.json.decode(raw)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"].encode()) <= 1024, what
    assert "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" not in error["message"]
    return error
