"""The page at `/` and the API reference at `/docs`: static files, without a build step.

The page loads nothing from other hosts, and its Content-Security-Policy forbids it. The files need
no API key. The page asks the user for a key and sends it with its own calls.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path

from aiohttp import hdrs, web

from frontends.http.authentication import ROOT
from frontends.http.request_checks import Handler

FOLDER = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Only the page's own files run and load; no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser asks again each time, and an update of the server changes the tag.
    hdrs.CACHE_CONTROL: "no-cache",
}


@cache
def _files() -> dict[str, bytes]:
    """Return each file's content by its name."""
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}


class PageRoutes:
    """The handlers. With `needs_key` the page asks the user for a key before its first call."""

    def __init__(self, *, needs_key: bool) -> None:
        self._body = b"<body data-needs-key>" if needs_key else b"<body>"

    def routes(self) -> dict[str, Handler]:
        return {"GET /": self.page, "GET /docs": self.docs, "GET /page/{name}": self.file}

    async def page(self, request: web.Request) -> web.Response:
        return self._document(request, "index.html")

    async def docs(self, request: web.Request) -> web.Response:
        return self._document(request, "docs.html")

    async def file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        # The two documents use paths relative to `/`, and have their own routes.
        if name not in _files() or name.endswith(".html"):
            raise web.HTTPNotFound
        return _send(request, name, _files()[name])

    def _document(self, request: web.Request, name: str) -> web.Response:
        return _send(request, name, _files()[name].replace(b"<body>", self._body))


async def add_slash(request: web.Request) -> web.Response:
    """Redirect from the path prefix itself: the page's links are relative to a folder."""
    # The Location is a configured path.
    return web.Response(status=307, headers={hdrs.LOCATION: request.config_dict[ROOT] + "/"})


def _send(request: web.Request, name: str, content: bytes) -> web.Response:
    tag = sha256(content).hexdigest()[:16]
    headers = HEADERS | {hdrs.ETAG: f'"{tag}"'}
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=content, headers=headers, content_type=TYPES[Path(name).suffix], charset="utf-8")
