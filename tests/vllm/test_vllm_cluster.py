"""Real engines behind one address, on Ray Serve."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray_support import deploy, ray_url

__all__ = ("deploy", "ray_url")
pytestmark = [pytest.mark.ray, pytest.mark.nightly]


@pytest.mark.parametrize(("replicas", "workers"), [(2, 1), (1, 2)], ids=["two engines", "two workers"])
async def test_a_cluster_answers_a_schema_and_streams_at_once(deploy, replicas, workers):
    async with deploy(engine="vllm", model="bundled", replicas=str(replicas), workers=str(workers)) as cluster:
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
        status, body, _ = await cluster.post(
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "Name a city."}],
                "max_tokens": 40,
                "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
            },
        )
        assert status == 200
        assert body["choices"][0]["message"]["content"].startswith("{")

        async def stream():
            wanted = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "stream": True}
            async with cluster.session.post("/v1/completions", json=wanted) as response:
                assert response.status == 200
                return await response.text()

        answers = await asyncio.gather(*[stream() for _ in range(12)])
        assert all("Paris" in answer and answer.endswith("data: [DONE]\n\n") for answer in answers)
        found = await cluster.metrics()
        assert found["requests"]["completed"] == 13
        # The vLLM series of all engines, beside ours.
        async with cluster.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
            families = {family.name: family for family in text_string_to_metric_families(await response.text())}
        tokens = {one.labels["replica"]: one.value for one in families["vllm:generation_tokens"].samples if one.name.endswith("_total")}
        assert len(tokens) == replicas
        assert sum(tokens.values()) == found["tokens"]["completion"]
        assert min(tokens.values()) > 0
        assert found["admission"]["limit"] == replicas * 18
