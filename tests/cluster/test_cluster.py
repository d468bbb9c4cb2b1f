"""Several engines behind one address, on real Ray."""

import asyncio
import json
import time
from contextlib import suppress

import aiohttp
import anyio
import pytest
from ray_support import replicas

from llmserve import EngineStatistics, ManagerStatistics, MetricsSnapshot, State
from llmserve.admission import UsageDelta

SLOTS = 4
# Slow enough that two cores are not the bottleneck.
SLOW = {"engine_arg": f"max_num_seqs={SLOTS} time_scale=5", "max_running": str(SLOTS)}

each_server = pytest.mark.parametrize("workers", ["1", "2"], ids=["one process", "two workers"])


def wanted(tokens, **more):
    return {"prompt": "hello there", "max_tokens": tokens, "ignore_eos": True, **more}


async def read(cluster, tokens, events):
    """Read one stream to its end; append its events to `events`."""
    async with cluster.session.post("/v1/completions", json=wanted(tokens, stream=True, return_token_ids=True)) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: "):
                events.append(line.removeprefix(b"data: ").strip())


def count(events):
    """Return the number of tokens of a stream. A busy server sends several in one event."""
    return sum(len(json.loads(event)["choices"][0]["token_ids"]) for event in events[:-1])


@each_server
async def test_a_killed_replica_costs_no_request_that_has_sent_nothing_and_ends_every_stream(deploy, workers):
    from ray import serve

    async with deploy(replicas="2", workers=workers, max_waiting="50", **SLOW) as cluster:
        streams = [[] for _ in range(SLOTS)]
        waiting = [[] for _ in range(6)]
        wholes = []

        async def ask():
            status, body, _ = await cluster.post("/v1/completions", wanted(40))
            wholes.append((status, body["usage"]["completion_tokens"]))

        async with anyio.create_task_group() as tasks:
            for events in streams:
                tasks.start_soon(read, cluster, 200, events)
            with anyio.fail_after(20):
                while not all(streams):
                    await asyncio.sleep(0.01)
            for _ in range(12):
                tasks.start_soon(ask)
            for events in waiting:
                tasks.start_soon(read, cluster, 10, events)
            await cluster.until(lambda found: found["open"] == SLOTS + 12 + 6)
            # Wait until both replicas have reported: the dead one counts with its last report.
            shared_state = serve.get_deployment_handle("SharedState", "default")
            with anyio.fail_after(20):
                while (told := await shared_state.gone.remote([])) is None or told[1].statistics.admission.admitted < 2 * SLOTS:
                    await asyncio.sleep(0.05)
            victim, _ = replicas()
            victim.kill()
        assert wholes == [(200, 40)] * 12
        assert all(events[-1] == b"[DONE]" for events in streams + waiting)
        broken = [events for events in streams if b'"engine_restarted"' in events[-2]]
        assert 0 < len(broken) < SLOTS
        # Streams that had no token yet get all their tokens once.
        assert [count(events) for events in waiting] == [10] * 6
        # A new replica replaces the dead one, whose counts are not lost.
        found = await cluster.until(lambda found: found["admission"]["limit"] == 2 * SLOTS, seconds=60)
        assert found["admission"]["admitted"] >= SLOTS + 12 + 6


@each_server
async def test_a_client_that_leaves_frees_its_resources(deploy, workers):
    async with deploy(replicas="2", workers=workers, **SLOW) as cluster:
        for body in (wanted(1000, stream=True), wanted(1000)):
            requests = [asyncio.create_task(cluster.session.post("/v1/completions", json=body)) for _ in range(4)]
            await cluster.until(lambda found: found["engine"]["running"] == 4)
            for request in requests:
                request.cancel()
            answers = await asyncio.gather(*requests, return_exceptions=True)
            for answer in answers:
                if not isinstance(answer, BaseException):
                    answer.close()
            await cluster.until(lambda found: found["engine"]["running"] == 0, seconds=2)
        assert (await cluster.metrics())["requests"]["cancelled"] == 8


@each_server
async def test_a_refused_request_is_tried_elsewhere_and_the_shorter_retry_after_is_returned(deploy, workers):
    async with deploy(replicas="2", workers=workers, max_waiting="0", **SLOW) as cluster:
        holding = [asyncio.create_task(cluster.post("/v1/completions", wanted(200))) for _ in range(2 * SLOTS)]
        # Both replicas are full, and no request was refused.
        await cluster.until(lambda found: found["admission"]["running"] == 2 * SLOTS)
        status, body, headers = await cluster.post("/v1/completions", wanted(1))
        assert (status, body["error"]["code"]) == (503, "overloaded")
        assert float(headers["Retry-After-Ms"]) > 0
        # Each replica was tried.
        assert (await cluster.metrics())["admission"]["refused"]["queue_full"] >= 2
        assert [(await one)[0] for one in holding] == [200] * 2 * SLOTS


async def test_a_flooding_tenant_stays_near_its_share_of_all_replicas(deploy, tmp_path):
    from ray import serve

    table = tmp_path / "tenants.toml"
    table.write_text("[tenants.flood]\n[tenants.web]\n")
    async with deploy(replicas="2", max_waiting="200", max_wait="60", tenants=str(table), **SLOW) as cluster:

        async def ask(tenant):
            while True:
                await cluster.post("/v1/completions", wanted(20, user=tenant))

        async def overhear():
            nothing = ManagerStatistics(state=State.READY, open=0, tokenizing=0, admission=None, engine=EngineStatistics())
            shared_state = serve.get_deployment_handle("SharedState", "default")
            return await shared_state.exchange.remote("test", UsageDelta(), (time.monotonic(), MetricsSnapshot(nothing, None)))

        async with anyio.create_task_group() as tasks:
            for number in range(80):
                tasks.start_soon(ask, "web" if number < 16 else "flood")
            await asyncio.sleep(5)
            before = (await cluster.metrics())["tenants"]
            await asyncio.sleep(7)
            # Each replica reports its usage and gets the usage of the others.
            await overhear()
            await asyncio.sleep(3)
            assert set((await overhear()).costs) == {"flood", "web"}
            after = (await cluster.metrics())["tenants"]
            tasks.cancel_scope.cancel()
        served = {name: after[name]["tokens"]["completion"] - before[name]["tokens"]["completion"] for name in ("flood", "web")}
        # By the number of requests the tenant would have four fifths.
        assert served["flood"] / sum(served.values()) == pytest.approx(0.5, abs=0.1), served


async def test_a_tenant_s_limit_counts_over_all_replicas(deploy, tmp_path):
    table = tmp_path / "tenants.toml"
    table.write_text("[tenants.few]\nconcurrency = 2\n")
    async with deploy(replicas="2", tenants=str(table), **SLOW) as cluster:
        # One request each, because the router counts the requests that it has sent.
        holding = [asyncio.create_task(cluster.post("/v1/completions", wanted(2000, user="few"))) for _ in range(2)]
        await cluster.until(lambda found: found["admission"]["running"] == 2)
        statuses = []
        with anyio.fail_after(20):
            while statuses != [429, 429]:
                answers = await asyncio.gather(*(cluster.post("/v1/completions", wanted(1, user="few")) for _ in range(2)))
                statuses = [status for status, _, _ in answers]
        assert set((await cluster.metrics())["admission"]["refused"]) == {"tenant_limit"}
        for one in holding:
            one.cancel()


@each_server
async def test_a_repeated_request_with_its_key_reaches_the_same_replica(deploy, workers):
    async with deploy(replicas="2", workers=workers, **SLOW) as cluster:
        for number in range(8):
            headers = {"Idempotency-Key": f"order-{number}"}
            answers = [await cluster.post("/v1/completions", wanted(2), headers=headers) for _ in range(3)]
            assert len({body["id"] for _, body, _ in answers}) == 1
            assert [found.get("Idempotent-Replayed") for _, _, found in answers] == [None, "true", "true"]
        assert (await cluster.metrics())["requests"]["completed"] == 8


async def test_replicas_are_added_with_load_and_removed_without(deploy):
    words = {"replicas": "1", "max_replicas": "3", "scale_up_delay": "1", "scale_down_delay": "2"}
    async with deploy(max_waiting="8", **words, **SLOW) as cluster:
        assert (await cluster.metrics())["admission"]["limit"] == SLOTS

        async def ask():
            while True:
                if (await cluster.post("/v1/completions", wanted(20)))[0] != 200:
                    await asyncio.sleep(0.2)

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(ask)
            await cluster.until(lambda found: found["admission"]["limit"] == 3 * SLOTS, seconds=60)
            tasks.cancel_scope.cancel()
        await cluster.until(lambda found: found["admission"]["limit"] == SLOTS, seconds=90)


async def test_a_prompt_with_every_kind_of_text_arrives_as_it_was_sent(deploy):
    async with deploy(replicas="1", **SLOW) as cluster:
        text = "é \u2028 日本 \0 " + json.dumps({"a": "b\n\n"})
        _, found, _ = await cluster.post("/tokenize?x=%2F", {"prompt": text})
        _, back, _ = await cluster.post("/detokenize", {"tokens": found["tokens"]})
        assert back["prompt"] == text
        # More than the limit of a gRPC message, and more than the limit of a body.
        for size, wanted_status in ((3 * 2**20, 400), (5 * 2**20, 413)):
            assert (await cluster.post("/v1/completions", wanted(1, prompt="x" * size)))[0] == wanted_status


@each_server
async def test_the_end_of_the_application_waits_for_open_answers(deploy, workers):
    """The requests do not pass through Ray Serve, which therefore does not wait for them."""
    from ray import serve

    async with deploy(replicas="2", workers=workers, **{**SLOW, "drain_timeout": "30"}) as cluster:
        events = [[] for _ in range(4)]
        async with anyio.create_task_group() as tasks:
            for stream in events:
                tasks.start_soon(read, cluster, 100, stream)
            with anyio.fail_after(20):
                while not all(events):
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(serve.delete, "default")
        assert [(count(stream), stream[-1]) for stream in events] == [(100, b"[DONE]")] * 4


async def test_an_application_is_replaced_on_its_port(deploy):
    """Ingresses of one deployment meet replicas of the other for a while."""
    async with deploy(replicas="2", **SLOW) as cluster:
        statuses = []

        async def ask():
            while True:
                try:
                    statuses.append((await cluster.post("/v1/completions", wanted(2)))[0])
                except aiohttp.ClientError:
                    # The single ingress is being replaced.
                    await asyncio.sleep(0.05)

        async def limit():
            with suppress(aiohttp.ClientError):
                return (await cluster.metrics())["admission"]["limit"]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            async with deploy(replicas="2", port=cluster.url.rpartition(":")[2], **{**SLOW, "max_running": "3"}):
                with anyio.fail_after(90):
                    while (await limit()) != 2 * 3:
                        await asyncio.sleep(0.1)
            tasks.cancel_scope.cancel()
        # An ingress that is about to end refuses requests.
        assert 200 in statuses
        assert set(statuses) <= {200, 503}


@pytest.mark.parametrize("stream", [False, True])
async def test_ray_serve_s_proxy_reaches_the_replicas_too(deploy, stream):
    async with deploy(replicas="2", by_proxy=True, **SLOW) as cluster:
        if stream:
            events = []
            await read(cluster, 20, events)
            assert (count(events), events[-1]) == (20, b"[DONE]")
        else:
            status, body, _ = await cluster.post("/v1/completions", wanted(20))
            assert (status, body["usage"]["completion_tokens"]) == (200, 20)


async def test_a_replica_serves_from_several_engines(deploy):
    async with deploy(replicas="2", engines="2", **SLOW) as cluster:
        found = await cluster.until(lambda found: found["admission"]["limit"] == 2 * 2 * SLOTS)
        assert [engine["up"] for engine in found["engines"]] == [True] * 4
        async with anyio.create_task_group() as tasks:
            events = [[] for _ in range(2 * 2 * SLOTS)]
            for stream in events:
                tasks.start_soon(read, cluster, 60, stream)
        assert [(count(stream), stream[-1]) for stream in events] == [(60, b"[DONE]")] * len(events)
        found = await cluster.until(lambda found: found["open"] == 0)
        assert all(engine["generation_tokens"] for engine in found["engines"])
