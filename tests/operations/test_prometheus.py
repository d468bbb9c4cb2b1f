"""A real Prometheus scrapes a loaded server: rules load, the dashboard's queries have data."""

import json
import math
import pathlib
import re
import subprocess
import urllib.parse
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from program_support import fetch, program
from support.processes import free_port

pytestmark = pytest.mark.operations
FOLDER = pathlib.Path(__file__).parent.parent.parent / "docs/operations"
# Queries that have no data on a machine without a GPU are left out.
QUERIES = [
    target["expr"]
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    for target in panel["targets"]
    if "llmserve_gpu_" not in target["expr"]
]
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs: [{job_name: llmserve, static_configs: [{targets: ["127.0.0.1:%d"]}]}]
"""
# A cache that is too small for the load, few slots and short patience, so that something of
# everything happens.
LOADED = ("--max-running", "4", "--max-waiting", "4", "--max-wait", "0.5", "--slo-ttft", "0.05")
CRAMPED = ("--engine-arg", "num_blocks=40", "--engine-arg", "max_num_seqs=8", "--engine-arg", "max_model_len=512")


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


def promtool(*words, text=None):
    done = subprocess.run(["promtool", *words], input=text, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return (done.stdout + done.stderr).decode()


@asynccontextmanager
async def prometheus(folder, target):
    """The address of a Prometheus that scrapes `target`."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(CONFIG % (FOLDER / "alerts.yml", target))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    async with await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with anyio.fail_after(30):
                while True:
                    with suppress(OSError):
                        if (await fetch(f"http://127.0.0.1:{port}/-/ready"))[0] == 200:
                            break
                    await anyio.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def ask(url, query):
    """Return the values of the query now."""
    words = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "10s")})
    status, body = await fetch(f"{url}/api/v1/query?{words}")
    assert status == 200, body
    return [float(one["value"][1]) for one in json.loads(body)["data"]["result"]]


async def load(url):
    async def one(number):
        while True:
            await fetch(f"{url}/v1/completions", {"prompt": "hi " * 50 + str(number % 3), "max_tokens": 100, "ignore_eos": True})

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(one, number)


def test_the_rules_and_the_example_are_well_formed():
    assert "7 rules found" in promtool("check", "rules", str(FOLDER / "alerts.yml"))
    promtool("check", "config", str(FOLDER / "prometheus.yml"))


async def test_every_query_of_the_dashboard_and_every_rule_sees_a_loaded_server(tmp_path):
    async with program(tmp_path, *LOADED, *CRAMPED) as (_, url, _), prometheus(tmp_path, int(url.rsplit(":", 1)[1])) as scraper:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load, url)
            missing = set(QUERIES)
            with anyio.move_on_after(50):
                while missing:
                    for query in list(missing):
                        found = await ask(scraper, query)
                        if found and all(math.isfinite(value) for value in found):
                            missing.remove(query)
                    await anyio.sleep(0.2)
            assert not missing, missing
            rules = json.loads((await fetch(f"{scraper}/api/v1/rules"))[1])["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} == {"ok"}
            # The data of every alert exist, though the alert need not fire.
            for rule in rules:
                for series in set(re.findall(r"llmserve_\w+", rule["query"])):
                    assert await ask(scraper, series), series
            tasks.cancel_scope.cancel()
        status, text = await fetch(f"{url}/metrics", headers={"Accept": "text/plain"})
        assert status == 200
        promtool("check", "metrics", text=text)
