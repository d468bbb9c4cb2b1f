"""Figures of a running server, from the text of its /metrics."""

import math

import pytest
from aiohttp import web
from bokeh.document import Document
from bokeh.models import TextInput, Toggle

from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from reports.live.panel import Live, row_of, tenants_table
from reports.live.readings import quantile, rate, read, tenants
from reports.server import Site

URL = "http://127.0.0.1:8000"


def ours(scale, tokens=0):
    """Return a text of 10 * `scale` first tokens below 100 ms, and as many up to 200 ms."""
    return f"""# TYPE llmserve_time_to_first_token_seconds histogram
llmserve_time_to_first_token_seconds_bucket{{le="0.1"}} {10 * scale}
llmserve_time_to_first_token_seconds_bucket{{le="0.2"}} {20 * scale}
llmserve_time_to_first_token_seconds_bucket{{le="+Inf"}} {20 * scale}
# TYPE llmserve_engine_generation_tokens counter
llmserve_engine_generation_tokens_total {tokens}
# TYPE llmserve_engine_running gauge
llmserve_engine_running 3
# TYPE llmserve_tenant_requests counter
llmserve_tenant_requests_total{{tenant="<a>",outcome="completed"}} {4 * scale}
llmserve_tenant_requests_total{{tenant="<a>",outcome="refused"}} {2 * scale}
llmserve_tenant_requests_total{{tenant="b",outcome="completed"}} {8 * scale}
# TYPE llmserve_tenant_tokens counter
llmserve_tenant_tokens_total{{tenant="<a>",kind="completion"}} {40 * scale}
llmserve_tenant_tokens_total{{tenant="b",kind="completion"}} {80 * scale}
"""


VLLM = """# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{{engine="0",le="0.01"}} {half}
vllm:inter_token_latency_seconds_bucket{{engine="1",le="0.01"}} {half}
vllm:inter_token_latency_seconds_bucket{{engine="0",le="+Inf"}} {half}
vllm:inter_token_latency_seconds_bucket{{engine="1",le="+Inf"}} {half}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0"}} 5
"""


@pytest.mark.parametrize(("share", "seconds"), [(0.25, 0.05), (0.5, 0.1), (0.75, 0.15), (1.0, 0.2)])
def test_a_quantile_counts_only_what_came_between_two_readings(share, seconds):
    before, after = read(ours(scale=1), 0.0), read(ours(scale=3), 10.0)
    assert quantile(before, after, "ttft", share) == pytest.approx(seconds)
    assert math.isnan(quantile(before, before, "ttft", share))
    assert math.isnan(quantile(before, after, "itl", share))


def test_vllm_s_engines_are_added():
    before, after = read(VLLM.format(half=0), 0.0), read(VLLM.format(half=50), 1.0)
    assert quantile(before, after, "itl", 0.5) == pytest.approx(0.005)
    assert after.fields["waiting"] == 5


def test_a_value_above_the_last_bound_is_that_bound():
    text = 'a_bucket{le="0.5"} 0\na_bucket{le="+Inf"} 4\n'.replace("a_bucket", "vllm:time_to_first_token_seconds_bucket")
    text = "# TYPE vllm:time_to_first_token_seconds histogram\n" + text
    nothing = read("", 0.0)
    assert quantile(nothing, read(text, 1.0), "ttft", 0.5) == 0.5


def test_a_rate_has_gaps_where_a_server_began_again():
    first, second, restarted = (read(ours(1, tokens), time) for tokens, time in ((100, 0.0), (300, 2.0), (5, 3.0)))
    assert rate(first, second, "generation_tokens") == 100
    assert math.isnan(rate(second, restarted, "generation_tokens"))
    assert math.isnan(rate(first, second, "preemptions"))


def test_tenants_are_in_the_order_of_their_tokens_and_escaped():
    readings = [read(ours(scale), 2.0 * scale) for scale in (1, 2, 3)]
    assert tenants(readings[0], readings[-1]) == {
        "b": {"requests": 4, "refused": 0, "prompt": 0, "completion": 40},
        "<a>": {"requests": 3, "refused": 1, "prompt": 0, "completion": 20},
    }
    table = tenants_table(readings)
    assert table.index("<td>b</td>") < table.index("<td>&lt;a&gt;</td>")
    assert tenants_table([read("", 0.0)]) == ""


def test_a_row_has_a_value_for_every_line():
    row = row_of([read(ours(1, 10), 0.0), read(ours(2, 60), 1.0)])
    assert (row["running"], row["tokens_per_second"], row["ttft_p50"]) == (3, 50, pytest.approx(100))
    assert math.isnan(row["kv_usage"])


@pytest.mark.parametrize(
    ("address", "trusted", "shown", "follows"),
    [
        ("", [], "http://127.0.0.1:8000", False),
        ("", ["http://a"], "http://a", True),
        ("http://b", ["http://a", "http://b"], "http://b", True),
        ("http://elsewhere", ["http://a"], "http://elsewhere", False),
    ],
)
def test_only_a_server_that_the_operator_named_is_followed_at_once(address, trusted, shown, follows):
    """A link may name any address that the reports' machine reaches."""
    document = Document()
    document.add_root(Live(document, address, trusted).panel())
    assert document.select_one({"type": TextInput}).value == shown
    assert document.select_one({"type": Toggle}).active is follows
    assert len(document.session_callbacks) == follows


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("address", "sent"), [("{trusted}", "Bearer secret"), ("{trusted}/", None), ("http://localhost:{port}", None)])
async def test_only_a_server_that_the_operator_named_gets_the_key(address, sent, anyio_backend):
    """A link may name any server, which would then have the key."""
    seen = []

    async def metrics(request):
        seen.append(request.headers.get("Authorization"))
        return web.Response(text=ours(1))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with running(app) as acceptor, listen(acceptor, listener := bind("127.0.0.1", 0)):
        port = listener.getsockname()[1]
        trusted = f"http://127.0.0.1:{port}"
        live = Live(Document(), address.format(trusted=trusted, port=port), [trusted], "secret")
        await live._poll()
    assert seen == [sent]
    assert "secret" not in repr(Site([], [trusted], api_key="secret"))
