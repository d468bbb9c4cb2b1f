"""Requests that real Ray Serve passes to the ingress and that no replica may see."""

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


async def test_paths_and_bodies_are_checked_before_a_replica_sees_them(deploy):
    async with deploy(replicas="1") as cluster:
        for path, statuses in {
            b"//evil/metrics": (404,),
            b"//[": (404,),
            b"//evil:99999/x": (404,),
            b"/metrics": (200,),
            b"/\xff": (400,),
        }.items():
            line = await exchange(cluster.url, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
            assert int(line.split()[1]) in statuses, (path, line)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        assert b" 413 " in await exchange(cluster.url, head % (300 * 2**20))
        status, _, _ = await cluster.post("/v1/completions", {"prompt": "hi", "max_tokens": 2})
        assert status == 200
