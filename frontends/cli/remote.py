"""A server that a terminal tool calls: any that speaks OpenAI's HTTP API."""

import argparse
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
from aiohttp.http_exceptions import LineTooLong

from frontends.access.control import KEY_VARIABLE

# The variables that hold an API key, the first that is set.
KEY_VARIABLES = (KEY_VARIABLE, "OPENAI_API_KEY")
TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=600)
# Maximum bytes of one event. aiohttp's default for a line, 128 KiB, is less than some logprobs.
MAX_LINE = 2**22
BROKEN_OFF = "closed the connection in the middle of the answer"


# Control characters of C0, DEL and C1: in a server's text they could control the user's terminal.
CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�") | {
    ord("\n"): "\n",
    ord("\t"): "\t",
    ord("\r"): None,
}


def plain(text: str) -> str:
    """Return a server's text without characters that control a terminal, for printing."""
    return text.translate(CONTROLS)


class CannotCall(Exception):
    """A call failed; the message says why, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `url` and `--api-key`."""
    words = "address of the server (default: %(default)s)"
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help=words)
    words = f"API key of the server (default: the environment variable {' or '.join(KEY_VARIABLES)})"
    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    parser.add_argument("--api-key", default=key, metavar="KEY", help=words)


class Server:
    """Calls one server. Every method raises CannotCall."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None = None) -> None:
        self.url = base_of(url)
        self._session = session
        if key and not key.isprintable():
            raise CannotCall(f"the API key has a line break or another control character: correct --api-key or {KEY_VARIABLES[0]}")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def text(self, path: str) -> str:
        """Return the answer to GET `path`."""
        try:
            async with self._session.get(f"{self.url}/{path}", headers=self._headers, timeout=TIMEOUT) as response:
                await self._check(response)
                return (await response.read()).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from None

    async def model(self) -> str:
        """Return the name of the first served model."""
        try:
            return str(msgspec.json.decode(await self.text("v1/models"))["data"][0]["id"])
        except (msgspec.DecodeError, KeyError, IndexError, TypeError):
            raise CannotCall(f"{self.url}/v1/models does not list a model: is this an OpenAI-compatible server?") from None

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a streamed chat. Closing the iterator aborts the request."""
        url = f"{self.url}/v1/chat/completions"
        try:
            async with self._session.post(
                url, json=body | {"stream": True}, headers=self._headers, timeout=TIMEOUT, read_bufsize=MAX_LINE
            ) as response:
                await self._check(response)
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        yield event
        except msgspec.DecodeError as error:
            raise CannotCall(f"{url} sends an event that is no JSON object: {error}") from None
        except aiohttp.ClientPayloadError:
            raise CannotCall(f"{url} {BROKEN_OFF}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from None

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:
            return
        body = await response.read()
        try:
            message = _message(msgspec.json.decode(body, type=dict[str, Any]))
        except (msgspec.DecodeError, msgspec.ValidationError):
            message = f"{response.url} answers with status {response.status}"
        if response.status == 404 and response.method == "GET":
            message += f"; {self.url} should be the server's address, without the path of a route"
        if response.status == 401:
            message += f"; pass --api-key, or set {KEY_VARIABLES[0]}"
        wait = response.headers.get("Retry-After")
        raise CannotCall(message + (f" (retry in {wait} s)" if wait else ""))

    def _unreachable(self, error: Exception) -> CannotCall:
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
            reason = os.strerror(error.os_error.errno)
        else:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return CannotCall(f"cannot reach {self.url}: {reason}")


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a response. Raises CannotCall if they do not end as a chat does."""
    began = ended = False
    try:
        async for line in response.content:
            field, _, data = line.strip().partition(b":")
            if data.strip() == b"[DONE]":
                return
            if field == b"data":
                event = msgspec.json.decode(data, type=dict[str, Any])
                if event.get("error"):
                    raise CannotCall(_message(event))
                began, ended = True, ended or _is_last(event)
                yield event
    except LineTooLong:
        raise CannotCall(f"{response.url} sends a line of more than {MAX_LINE:,} bytes") from None
    if not began:
        raise CannotCall(f"{response.url} answers with {response.content_type} that has no events: is this an OpenAI-compatible server?")
    if not ended:
        raise CannotCall(f"{response.url} {BROKEN_OFF}")


def base_of(url: str) -> str:
    """Return the address of a server, without the routes of OpenAI's API that people paste with it."""
    url = (url if "://" in url else f"http://{url}").partition("#")[0].partition("?")[0].rstrip("/")
    return url.removesuffix("/chat/completions").removesuffix("/models").removesuffix("/v1")


def delta_of(event: dict[str, Any]) -> dict[str, Any]:
    """Return what an event adds to the first choice; empty for nothing. Raises CannotCall."""
    try:
        delta = (event.get("choices") or [{}])[0].get("delta") or {}
        return dict(delta.items())
    except (AttributeError, LookupError, TypeError):
        raise CannotCall("the server sends an event that is no part of a chat") from None


def _is_last(event: dict[str, Any]) -> bool:
    choices = event.get("choices")
    return isinstance(choices, list) and any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices)


def _message(body: dict[str, Any]) -> str:
    error = body.get("error", body)
    return str(error.get("message", error) if isinstance(error, dict) else error)
