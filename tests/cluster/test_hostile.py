"""Requests that no replica may see, to the ingress and to Ray Serve's proxy."""

import asyncio

import pytest

pytestmark = pytest.mark.anyio


async def exchange(url, data):
    host, _, port = url.rpartition("/")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        async with asyncio.timeout(30):
            return await reader.readuntil(b"\r\n")
    finally:
        writer.close()


@pytest.mark.parametrize("by_proxy", [False, True], ids=["ingress", "proxy"])
async def test_paths_and_bodies_are_checked_before_a_replica_sees_them(deploy, by_proxy):
    async with deploy(replicas="1", by_proxy=by_proxy) as cluster:
        for path, statuses in {
            b"//evil/metrics": (404,),
            b"//[": (404,),
            b"//evil:99999/x": (404,),
            b"/metrics": (200,),
            b"/\xff": (400,),
        }.items():
            line = await exchange(cluster.url, b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
            assert int(line.split()[1]) in statuses, (path, line)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        assert b" 413 " in await exchange(cluster.url, head % (300 * 2**20))
        status, _, _ = await cluster.post("/v1/completions", {"prompt": "hi", "max_tokens": 2})
        assert status == 200


async def test_a_replica_answers_ingresses_only(deploy):
    from ray import serve

    async with deploy(replicas="1"):
        [report] = (await serve.get_deployment_handle("SharedState", "default").reports.remote()).values()
        for more in (b"", b"X-LLMServe-Ingress: a guess\r\n", b"X-LLMServe-Ingress: \xff\r\n"):
            line = await exchange(
                f"http://{report.address.host}:{report.address.port}", b"GET /metrics HTTP/1.1\r\nHost: x\r\n%b\r\n" % more
            )
            assert line.split()[1] == b"421"
