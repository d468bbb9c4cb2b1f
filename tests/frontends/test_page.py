"""The files of the page at `/`: their headers, their tags and what a request cannot reach."""

import re

import pytest
from http_support import running_server

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.http.page.routes import FOLDER, TYPES

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_every_file_is_served_with_a_strict_policy_and_asked_for_again_by_its_tag():
    documents = {"index.html": "/", "docs.html": "/docs"}
    async with running_server() as server:
        for file in (path for path in FOLDER.iterdir() if path.suffix in TYPES):
            path = documents.get(file.name, f"/page/{file.name}")
            async with server.session.get(path) as response:
                assert (response.status, await response.read()) == (200, file.read_bytes())
                assert response.content_type == TYPES[file.suffix]
                assert "default-src 'none'" in response.headers["Content-Security-Policy"]
                tag = response.headers["ETag"]
            async with server.session.get(path, headers={"If-None-Match": tag}) as response:
                assert (response.status, await response.read()) == (304, b"")


async def test_no_other_file_can_be_reached():
    async with running_server() as server:
        for name in ("routes.py", "index.html", "..%2Fapp.py", "x"):
            async with server.session.get(f"/page/{name}") as response:
                assert response.status == 404, name


async def test_the_document_says_whether_the_server_requires_a_key():
    async with running_server(app={"access": Access(Keys.single("k"))}) as server, server.session.get("/") as response:
        assert "<body data-needs-key>" in await response.text()


def test_no_file_names_another_host_or_has_inline_code():
    for file in FOLDER.glob("*.*"):
        text = file.read_text()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), file.name
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text), file.name


@pytest.mark.parametrize("path", ["/llm", "/llm/", "/llm/docs", "/llm/page/main.js"])
async def test_the_page_is_served_below_the_path_prefix(path):
    async with running_server(app={"root_path": "/llm"}) as server, server.session.get(path) as response:
        assert response.status == 200
        assert response.url.path == (path if path != "/llm" else "/llm/")
