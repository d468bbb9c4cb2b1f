"""The Live tab beside a running server."""

import http.server
import itertools
import re
import subprocess
import sys
import threading
from urllib.parse import urlencode

import pytest
from browser.conftest import ROOT

pytestmark = pytest.mark.browser

TEXT = """# TYPE llmserve_time_to_first_token_seconds histogram
llmserve_time_to_first_token_seconds_bucket{{le="0.1"}} {count}
llmserve_time_to_first_token_seconds_bucket{{le="+Inf"}} {count}
# TYPE llmserve_engine_running gauge
llmserve_engine_running 3
# TYPE llmserve_tenant_tokens counter
llmserve_tenant_tokens_total{{tenant="a tenant",kind="completion"}} {count}
"""
SCROLLS = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"


class Metrics(http.server.BaseHTTPRequestHandler):
    """A server whose counters grow with each reading."""

    readings = itertools.count(1)

    def do_GET(self):
        body = TEXT.format(count=10 * next(self.readings)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def followed():
    """Yield the URL of a server, and how many readings it has answered."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def reports(followed):
    command = [sys.executable, "-m", "reports", "serve", "--live", followed, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group()
        process.terminate()


def test_a_server_of_the_command_line_is_followed_without_runs(reader, reports):
    reader.open(reports)
    assert reader.page.locator(".bk-tab.bk-active").inner_text() == "Live"
    reader.page.get_by_text("following").wait_for()
    reader.page.get_by_role("cell", name="a tenant").wait_for()
    for width in (390, 1400):
        reader.page.set_viewport_size({"width": width, "height": 900})
        reader.wait_for_figures(6)
        assert not reader.page.evaluate(SCROLLS)
        reader.keep(f"live-{width}")
    assert reader.errors == []


def test_a_linked_server_is_followed_when_the_reader_asks_for_it(reader, reports, followed):
    other = followed.replace("127.0.0.1", "localhost")
    reader.open(f"{reports}/?{urlencode({'live': other})}")
    assert reader.page.get_by_label("Server").input_value() == other
    assert reader.page.get_by_text("following").count() == 0
    reader.page.get_by_label("Server").fill(followed)
    reader.page.get_by_label("Server").press("Enter")
    reader.page.get_by_role("button", name="follow").click()
    reader.page.get_by_text("following").wait_for()
    assert urlencode({"live": followed}) in reader.page.url
    assert reader.errors == []
