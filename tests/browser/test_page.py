"""The page at `/` and the API reference at `/docs`, in a real Chromium."""

import asyncio
import contextlib
import queue
import threading

import attrs
import pytest
from engines import ScriptedEngine
from http_support import running_server

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from llmserve import Delta, InvalidRequest

pytestmark = pytest.mark.browser

in_both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"], indirect=True)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
HOLDS = "count => document.querySelector('#figures dd').textContent.startsWith(`${count} of`)"


# A maximum number of tokens that the engine refuses.
FAILS = 7


class Chatty(ScriptedEngine):
    """Sends three tokens of each answer, which is then open unless it may have no more."""

    @property
    def info(self):
        return attrs.evolve(super().info, max_model_len=1000)

    async def submit(self, request_id, prompt, sampling, priority, sink):
        if sampling.max_tokens == FAILS:
            raise InvalidRequest("the script fails", "max_tokens")
        await super().submit(request_id, prompt, sampling, priority, sink)
        for token in (1, 2, 3):
            sink.put(Delta(f"word{token} ", (token,), finish_reason="stop" if token == sampling.max_tokens else None))
            if token == sampling.max_tokens:
                self.held.discard(request_id)


@contextlib.contextmanager
def serving(**app):
    """Yield the URL of a server in a thread, and its engine."""
    engine, ready, ended = Chatty(), queue.Queue(), asyncio.Event()

    async def serve():
        async with running_server(engine, app=app) as server:
            ready.put((asyncio.get_running_loop(), server.url))
            await ended.wait()
            # A failed test may leave an answer open, which nothing would ever end.
            server.manager.cancel_all("the test has ended")

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, url = ready.get(timeout=60)
    try:
        yield url, engine
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)


def ask(page, text, tokens=3):
    page.fill("#max-tokens", str(tokens))
    page.fill("#text", text)
    page.press("#text", "Enter")


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@in_both_schemes
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_chat_streams_and_stop_frees_the_engine(reader, scheme, size):
    page = reader.page
    page.set_viewport_size(size)
    with serving() as (url, engine):
        page.goto(url)
        page.locator("#state", has_text="ready").wait_for()
        ask(page, "a short question")
        page.locator(".assistant", has_text="3 tokens, first after").wait_for()
        ask(page, "a long question", tokens=99)
        page.locator(".assistant >> nth=1", has_text="word3").wait_for()
        page.wait_for_function(HOLDS, arg=1)
        assert len(engine.held) == 1
        reader.keep(f"page-{scheme}-{size['width']}-streaming")
        page.click("#stop")
        page.wait_for_function(HOLDS, arg=0)
        assert not engine.held
        assert page.locator(".assistant >> nth=1").inner_text().split() == ["word1", "word2", "word3", "stopped"]
        page.click("#load summary")
        reader.keep(f"page-{scheme}-{size['width']}")
        assert fits(page)
        assert "1" in page.locator("#details dt:text-is('cancelled') + dd").inner_text()
    assert (reader.errors, reader.refused) == ([], [])


def test_an_error_shows_the_server_s_message_and_returns_the_text(reader):
    with serving() as (url, _):
        reader.page.goto(url)
        reader.page.locator("#state", has_text="ready").wait_for()
        ask(reader.page, "a failing question", tokens=FAILS)
        assert "the script fails" in reader.page.locator(".assistant .error").inner_text()
        assert reader.page.input_value("#text") == "a failing question"
        # The failed turn is not part of the conversation.
        ask(reader.page, "a short one")
        reader.page.locator(".assistant", has_text="3 tokens").wait_for()


def test_a_server_with_keys_is_asked_nothing_before_the_user_gives_a_key(reader):
    page = reader.page
    with serving(access=Access(Keys.single("secret")), root_path="/llm") as (url, _):
        page.goto(f"{url}/llm")
        page.locator("#key-form").wait_for()
        assert page.url == f"{url}/llm/"
        assert not page.locator("nav a", has_text="metrics").is_visible()
        assert reader.errors == []
        page.fill("#key", "wrong")
        page.click("#key-form button")
        page.locator("#key-error", has_text="does not accept this key").wait_for()
        page.fill("#key", "secret")
        page.click("#key-form button")
        page.locator("#state", has_text="ready").wait_for()
        assert "Authorization: Bearer $LLMSERVE_API_KEY" in page.inner_text("#curl")
        assert f"{url}/llm/v1/chat/completions" in page.inner_text("#curl")
        ask(page, "a short question")
        page.locator(".assistant", has_text="3 tokens").wait_for()
        reader.keep("page-keys")
        # The key stays in the tab: the API reference needs no second one.
        page.click("nav a")
        page.locator(".operation", has_text="/v1/chat/completions").first.wait_for()
    assert len(reader.errors) == 1, "the console reports the status 401 for the wrong key only"


@in_both_schemes
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_api_reference_lists_every_route_and_links_its_types(reader, scheme, size):
    page = reader.page
    page.set_viewport_size(size)
    with serving() as (url, _):
        page.goto(f"{url}/docs")
        page.locator("summary", has_text="/v1/chat/completions Answer a conversation").click()
        page.locator("details[open] a", has_text="ChatMessage").first.click()
        # The browser reports the new address a moment after the click.
        page.locator("#ChatMessage[open]").wait_for()
        reader.keep(f"docs-{scheme}-{size['width']}")
        assert fits(page)
    assert (reader.errors, reader.refused) == ([], [])
