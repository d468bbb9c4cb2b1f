"""A server at a URL: where its API is, how a client identifies itself, and which models it has.

A URL is read as OpenAI's clients read a base URL: the API's paths follow it. A URL without a path
gets `/v1`. Credentials are sent, and are in no label, error or file.
"""

import base64
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import attrs
from yarl import URL

from benchmarks.targets.base import TargetError

# aiohttp's default of 64 KiB stops the reader within one event of a long context, and the client
# would be measured.
READ_BUFFER = 10 * 2**20
CONNECT_SECONDS = 10.0
# Many servers close a connection that has been idle for 5 s (uvicorn, Node). A request that is sent
# at that moment fails, which is no failure of the server.
IDLE_SECONDS = 4.0
# A shorter secret would be found in ordinary words.
MIN_SECRET = 4

Prompts = Literal["ids", "text", "chat"]


@attrs.frozen(kw_only=True)
class ClientOptions:
    """How requests are sent to a server.

    Attributes:
        prompts: Token ids or their text, to completions; or one message, to chat completions.
        endpoint: Path of the requests, relative to the API, or with a `/` to the host; empty is
            that of `prompts`.
        headers: Further headers of each request.
        insecure: Whether any TLS certificate is accepted.
        extra_body: Further fields of each request; None removes a field.
        tokenizer: Model whose tokenizer makes the text of the prompts, and counts answers that the
            server does not count.
    """

    prompts: Prompts = "ids"
    endpoint: str = ""
    api_key: str | None = attrs.field(default=None, repr=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    insecure: bool = False
    extra_body: Mapping[str, Any] = attrs.field(factory=dict)
    tokenizer: str | None = None

    @property
    def path(self) -> str:
        return self.endpoint or ("chat/completions" if self.prompts == "chat" else "completions")


@attrs.frozen
class Server:
    """A server's API, and the client's options for it.

    Attributes:
        api: URL of the API, with a `/` at its end and without credentials.
        credentials: (user, password) from the URL, or None.
    """

    api: URL
    options: ClientOptions
    credentials: tuple[str, str] | None = attrs.field(default=None, repr=False)

    @property
    def url(self) -> str:
        """URL of the API with its credentials, for another process."""
        user, password = self.credentials or (None, None)
        return str(self.api.with_user(user).with_password(password) if user is not None else self.api)

    @property
    def root(self) -> URL:
        """URL of the server itself, for /metrics and /health."""
        return self.api.joinpath("..") if self.api.parts[-2:-1] == ("v1",) else self.api

    @property
    def headers(self) -> dict[str, str]:
        """The headers that identify the client: the URL's credentials or the key, and the user's headers.

        The user's headers win.
        """
        found = {}
        if self.credentials is not None:
            found["Authorization"] = f"Basic {base64.b64encode(':'.join(self.credentials).encode()).decode()}"
        elif self.options.api_key is not None:
            found["Authorization"] = f"Bearer {self.options.api_key}"
        return found | dict(self.options.headers)

    def hide(self, text: str) -> str:
        """Return a text without the client's secrets, which a server may quote."""
        password = self.credentials[1] if self.credentials else ""
        secrets = {password, self.options.api_key or "", *self.options.headers.values()}
        secrets |= {value.partition(" ")[2] for value in self.headers.values()}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= MIN_SECRET:
                text = text.replace(secret, "***")
        return text


def without_credentials(text: str, instead: str = "") -> str:
    """Return a text with `user:password@` left out of, or replaced in, its URLs."""
    return re.sub(r"(?<=://)[^/?#\s]*@", instead, text)


def parse_server(url: str, options: ClientOptions | None = None) -> Server:
    """Return the server of a URL. Raises TargetError for an invalid URL."""
    try:
        parsed, problem = URL(url), "write http://HOST:PORT, or the base URL of the API"
    except ValueError as error:
        parsed, problem = URL(), without_credentials(str(error))
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query_string or parsed.fragment:
        raise TargetError(f"{without_credentials(url)} is not a valid server URL: {problem}")
    credentials = (parsed.user or "", parsed.password or "") if parsed.user or parsed.password else None
    path = parsed.path.rstrip("/") or "/v1"
    return Server(parsed.with_user(None).with_path(path + "/"), options or ClientOptions(), credentials)


@asynccontextmanager
async def open_session(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client session without limits, whose paths are relative to the server's API."""
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0, ssl=not server.options.insecure, keepalive_timeout=IDLE_SECONDS)
    session = aiohttp.ClientSession(server.api, timeout=timeout, connector=connector, read_bufsize=READ_BUFFER, headers=server.headers)
    async with session:
        yield session


async def find_model(server: Server, model: str | None, adapters: Sequence[str] = ()) -> tuple[Server, str]:
    """Return the server, and its first model or the named one.

    If the URL has a path with no models, the API may be at `/v1` below it. A named model is
    accepted from a server that does not list its models.

    Raises:
        TargetError: The server cannot be reached, or does not have the model or an adapter.
    """
    status, models = await _models(server)
    if status == 404 and server.root == server.api:
        below = attrs.evolve(server, api=server.api / "v1/")
        found, listed = await _models(below)
        if listed is not None:
            status, models, server = found, listed, below
    if models is None:
        if model is not None and status in (404, 405, 501):
            return server, model
        raise TargetError(
            f"{server.api}models returns HTTP {status}{'' if status != 404 else ': pass --model, or the base URL of the API'}"
        )
    missing = next((name for name in (model, *adapters) if name is not None and name not in models), None)
    if not models or missing is not None:
        raise TargetError(f"{server.api} does not serve {missing!r}; its models: {', '.join(models) or 'none'}")
    return server, str(model or models[0])


async def _models(server: Server) -> tuple[int, list[str] | None]:
    """Return the status of the list of models, and the list if there is one. Raises TargetError."""
    async with open_session(server) as session:
        try:
            async with session.get("models") as response:
                if response.status != 200:
                    return response.status, None
                return 200, [card["id"] for card in (await response.json(content_type=None))["data"]]
        except (aiohttp.ClientError, OSError, KeyError, ValueError, TypeError) as error:
            raise TargetError(f"{server.api} cannot be reached: {server.hide(str(error)) or type(error).__name__}") from error


async def is_healthy(url: str) -> bool:
    """Whether the server reports that it accepts requests."""
    server = parse_server(url)
    async with open_session(server) as session:
        try:
            async with session.get(server.root / "health") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False
