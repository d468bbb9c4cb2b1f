"""The series in Prometheus's text, from a manager and from NVML."""

import pickle
import sys
import types
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from llmserve import (
    AdmissionConfig,
    EngineManager,
    EngineStatistics,
    GenerationRequest,
    ManagerConfig,
    ManagerStatistics,
    MetricsSnapshot,
    Sampling,
    State,
    TenantLimits,
    TenantTable,
)  # fmt: skip
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.observability import nvml, prometheus


@pytest.fixture
def anyio_backend():
    return "asyncio"


def series(facts):
    text, _ = prometheus.render(facts, 1.0, "text/plain", prometheus.registered())
    return {(one.name, *sorted(one.labels.values())): one.value for family in parse_text(text.decode()) for one in family.samples}


async def test_tenants_are_labels_where_the_operator_has_named_them():
    table = TenantTable(named={"web": TenantLimits()})
    async with EngineManager(
        SimulatedEngine(SimulatedConfig(time_scale=0.0)), ManagerConfig(admission=AdmissionConfig(tenants=table))
    ) as manager:

        async def ask(tenant):
            await manager.generate(GenerationRequest("hi", sampling=Sampling(max_tokens=5, ignore_eos=True), tenant=tenant))

        await ask("web")
        await ask("batch")
        manager.set_tenants(TenantTable(named={"web": TenantLimits(), "batch": TenantLimits()}))
        await ask("batch")
        found = series(manager.metrics_snapshot())
    for tenant in ("web", "batch", "others"):
        assert found["llmserve_tenant_requests_total", *sorted((tenant, "completed"))] == 1
        assert found["llmserve_tenant_tokens_total", *sorted((tenant, "completion"))] == 5


def test_registered_series_are_beside_ours_with_one_end():
    facts = MetricsSnapshot(ManagerStatistics(state=State.READY, open=0, tokenizing=0, admission=None, engine=EngineStatistics()), None)
    text, _ = prometheus.render(facts, 1.0, "application/openmetrics-text", prometheus.registered())
    names = {family.name for family in parse_openmetrics(text.decode())}
    assert {"llmserve_requests_running", "python_info"} <= names
    # Only once, and only on request.
    assert "python_info" not in prometheus.render(facts, 1.0, "text/plain")[0].decode()


def test_series_of_several_processes_are_one_family_with_whose_each_is_as_a_label():
    parts = {}
    for name, value in (("a", 1), ("b", 2)):
        registry = CollectorRegistry()
        Counter("steps", "Steps.", ["engine"], registry=registry).labels("0").inc(value)
        Histogram("wait_seconds", "Waits.", buckets=[1], registry=registry).observe(value)
        # In the form in which they are sent.
        parts[name] = pickle.loads(pickle.dumps(list(registry.collect())))
    families = {family.name: family for family in prometheus.labelled("replica", parts)}
    assert families.keys() == {"steps", "wait_seconds"}
    assert (families["steps"].type, families["wait_seconds"].type) == ("counter", "histogram")
    found = {(one.name, *sorted(one.labels.items())): one.value for one in families["steps"].samples if one.name == "steps_total"}
    assert found == {("steps_total", ("engine", "0"), ("replica", name)): value for name, value in (("a", 1), ("b", 2))}
    buckets = {one.labels["replica"]: one.value for one in families["wait_seconds"].samples if one.labels.get("le") == "1.0"}
    assert buckets == {"a": 1, "b": 0}


class NVMLError(Exception):
    pass


def library():
    """A stand-in for NVML with two cards, of which the second does not report its power."""
    cards = {"0": 0, "1": 1, "GPU-b": 1}
    watts = {0: 300}

    def find(name):
        if str(name) not in cards:
            raise NVMLError("no such card")
        return cards[str(name)]

    def power(gpu):
        if gpu not in watts:
            raise NVMLError("not supported")
        return watts[gpu] * 1000

    found: Any = types.ModuleType("pynvml")
    found.NVMLError = NVMLError
    found.nvmlInit = lambda: None
    found.nvmlDeviceGetCount = lambda: 2
    found.nvmlDeviceGetHandleByIndex = found.nvmlDeviceGetHandleByUUID = find
    found.nvmlDeviceGetName = lambda gpu: "H100"
    found.nvmlDeviceGetMemoryInfo = lambda gpu: types.SimpleNamespace(used=(gpu + 1) * 2**30, total=80 * 2**30)
    found.nvmlDeviceGetUtilizationRates = lambda gpu: types.SimpleNamespace(gpu=25)
    found.nvmlDeviceGetPowerUsage = power
    found.nvmlDeviceGetTemperature = lambda gpu, kind: 40 + gpu
    return found


@pytest.fixture
def cards(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", library())
    nvml._gpus.cache_clear()
    yield
    nvml._gpus.cache_clear()


def readings():
    return {
        (family.name.removeprefix("llmserve_gpu_"), one.labels["gpu"]): one.value
        for family in nvml.GPUCollector().collect()
        for one in family.samples
    }


@pytest.mark.usefixtures("cards")
def test_every_gpu_is_exported_without_its_missing_readings(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = readings()
    assert found["memory_used_bytes", "1"] == 2 * 2**30
    assert found["utilization", "0"] == 0.25
    assert found["power_watts", "0"] == 300
    assert ("power_watts", "1") not in found
    assert ("temperature_celsius", "1") in found


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(("visible", "gpus"), [("1", {"1"}), ("GPU-b", {"GPU-b"}), ("", set()), ("0,7", {"0"})])
def test_only_the_gpus_that_this_process_may_use_are_exported(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert {gpu for _, gpu in readings()} == gpus


def test_without_a_gpu_there_are_no_gpu_series(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml._gpus.cache_clear()
    assert readings() == {}
    nvml._gpus.cache_clear()


@pytest.mark.parametrize(
    ("max_seconds", "last"), [(30.0, 300.0), (300.0, 300.0), (600.0, 600.0), (900.0, 1200.0), (None, 10_800.0), (86_400.0, 10_800.0)]
)
async def test_latency_buckets_reach_the_longest_time_of_a_request(max_seconds, last):
    config = ManagerConfig(max_seconds=max_seconds)
    async with EngineManager(SimulatedEngine(SimulatedConfig(time_scale=0.0)), config) as manager:
        await manager.generate("hi", sampling=Sampling(max_tokens=1))
        whole = MetricsSnapshot.together([manager.metrics_snapshot(), manager.metrics_snapshot()], None, one_engine=True)
        for facts in (manager.metrics_snapshot(), whole):
            text, _ = prometheus.render(facts, 1.0, "text/plain")
            families = {family.name: family for family in parse_text(text.decode())}
            for name in ("llmserve_request_seconds", "llmserve_time_to_first_token_seconds", "llmserve_queue_seconds"):
                bounds = [float(one.labels["le"]) for one in families[name].samples if "le" in one.labels]
                assert bounds[-2:] == [last, float("inf")]


@pytest.mark.parametrize("folder", ["", "/no/such/folder", "/dev/null"])
def test_where_processes_share_no_folder_the_series_are_those_of_this_one(folder, monkeypatch):
    """A regression in programs that embed our routes: each scrape was an error."""
    monkeypatch.setenv(prometheus.MULTIPROCESS, folder)
    assert "python_info" in {family.name for family in prometheus.registered()}
