"""The stages of a request, and its spans."""

import importlib.metadata
import math

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import (
    AdmissionConfig,
    EngineManager,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    Outcome,
    Overloaded,
    Sampling,
    Timeline,
    __version__,
)
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.observability.opentelemetry import OpenTelemetry, _resource
from llmserve.tracing import RELEASE, STAGES, stages

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


@st.composite
def timelines(draw):
    """Requests that reached different stages, with an engine that reports its times or does not."""
    reached = draw(st.integers(0, len(STAGES)))
    complete = reached == len(STAGES)
    now, readings = draw(st.floats(0, 1e6)), {}
    line = Timeline(arrived=now, outcome=Outcome.COMPLETED if complete else draw(st.sampled_from(list(Outcome)[1:])))
    for reading in list(STAGES.values())[:reached]:
        now += draw(st.floats(0, 100))
        readings[reading] = now
    if draw(st.booleans()):
        readings.pop("engine_scheduled", None)
    for reading, value in readings.items():
        setattr(line, reading, value)
    line.finished = now + draw(st.floats(0, 100))
    return line


@given(timelines())
def test_the_stages_of_a_request_sum_to_its_time_and_none_is_negative(line):
    found = stages(line)
    assert math.isclose(sum(found.values()), line.finished - line.arrived, abs_tol=1e-9 * max(1.0, line.finished))
    assert min(found.values()) >= 0
    assert (RELEASE in found) == (line.outcome is Outcome.COMPLETED)
    # In the order in which they happened.
    assert list(found) == [name for name in (*STAGES, RELEASE) if name in found]


@pytest.mark.parametrize(
    ("readings", "last"),
    [
        ({}, "tokenize"),
        ({"tokenized": 2.0}, "queue"),
        ({"tokenized": 2.0, "submitted": 3.0}, "prefill"),
        ({"tokenized": 2.0, "submitted": 3.0, "first_token": 4.0, "last_token": 4.0}, "decode"),
    ],
)
def test_an_early_end_counts_in_the_current_stage(readings, last):
    line = Timeline(arrived=1.0, finished=9.0, outcome=Outcome.CANCELLED, **readings)
    assert list(stages(line))[-1] == last


class Rig:
    """A manager on the simulated engine, and the calls of its tracer."""

    def __init__(self, config=None, **simulated):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        traces = TracerProvider(shutdown_on_exit=False)
        traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = OpenTelemetry(traces, MeterProvider([self.reader], shutdown_on_exit=False), model="sim", provider="simulated")
        self.engine = SimulatedEngine(SimulatedConfig(**simulated))
        self.manager = EngineManager(self.engine, config, tracer=self.tracer)
        self.tracer.observe(self.manager.statistics)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def points(self):
        scopes = [scope for resource in self.reader.get_metrics_data().resource_metrics for scope in resource.scope_metrics]
        return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}


async def test_a_request_is_one_span_with_its_stages():
    rig = Rig()
    async with rig.manager as manager:
        request = GenerationRequest("hello", sampling=Sampling(max_tokens=20, ignore_eos=True, temperature=0.5), tenant="web")
        completion = await manager.generate(request)
    (span,) = rig.spans
    assert (span.name, span.kind.name, span.parent) == ("text_completion sim", "SERVER", None)
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "simulated",
        "gen_ai.request.model": "sim",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": request.request_id,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": completion.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 20,
        "llmserve.tenant": "web",
        "llmserve.outcome": "completed",
    }
    assert {name: span.attributes[name] for name in expected} == expected
    assert "error.type" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET
    parts = {name.removeprefix("llmserve.stage."): value for name, value in span.attributes.items() if ".stage." in name}
    assert sum(parts.values()) == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-6)
    assert parts["decode"] > parts["prefill"] > 0
    # Each event is at the end of its stages.
    for event in span.events:
        before = list(parts)[: list(parts).index(event.name.removesuffix(" done")) + 1]
        assert (event.timestamp - span.start_time) / 1e9 == pytest.approx(sum(parts[name] for name in before), abs=1e-6)


async def test_no_text_of_a_request_or_an_answer_is_exported():
    rig = Rig()
    async with rig.manager as manager:
        messages = [{"role": "user", "content": "SECRET"}]
        answer = await manager.generate(GenerationRequest(messages=messages, sampling=Sampling(max_tokens=5, stop=("PASSWORD",))))
    (span,) = rig.spans
    assert span.name == "chat sim"
    for word in ("SECRET", "PASSWORD", answer.text):
        assert word not in span.to_json()


async def test_a_request_is_part_of_what_it_says_and_the_engine_hears_of_it():
    rig = Rig()
    async with rig.manager as manager:
        prompts = []
        submit = rig.engine.submit

        async def noting(request_id, prompt, *more):
            prompts.append(prompt)
            await submit(request_id, prompt, *more)

        rig.engine.submit = noting
        await manager.generate(GenerationRequest("hi", sampling=Sampling(max_tokens=2), trace_headers=PARENT))
    (span,) = rig.spans
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert prompts[0].trace_headers == {
        "traceparent": f"00-0af7651916cd43dd8448eb211c80319c-{span.context.span_id:016x}-01",
        "tracestate": "vendor=1",
    }


async def test_an_unsampled_parent_is_not_recorded():
    rig = Rig()
    async with rig.manager as manager:
        headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
        await manager.generate(GenerationRequest("hi", sampling=Sampling(max_tokens=2), trace_headers=headers))
        assert rig.spans == ()
        # The metrics count the request although it is not traced.
        assert rig.points()["llmserve.requests"][0].value == 1


async def test_ends_of_every_kind_are_observed():
    rig = Rig(ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=0)))
    with pytest.raises(Overloaded):
        await rig.manager.generate("before the start")
    async with rig.manager as manager:
        with pytest.raises(LLMServeError):
            await manager.generate("x" * 100_000)
        with pytest.raises(LLMServeError):
            await manager.generate(GenerationRequest("hi", sampling=Sampling(max_tokens=1000, ignore_eos=True), deadline=0.5))
        async with manager.stream(GenerationRequest("hi", sampling=Sampling(max_tokens=1000, ignore_eos=True))) as stream:
            await anext(stream)
            with pytest.raises(Overloaded):
                await manager.generate("one too many")
    with pytest.raises(Overloaded):
        await manager.generate("after the end")
    told = [(span.attributes["llmserve.outcome"], span.attributes.get("llmserve.reason")) for span in rig.spans]
    # Before the start there is no clock.
    assert told == [("invalid", None), ("deadline", None), ("refused", "queue_full"), ("cancelled", None), ("refused", "stopped")]
    assert all(span.status.status_code is StatusCode.ERROR for span in rig.spans)
    points = rig.points()
    assert sum(point.value for point in points["llmserve.requests"]) == 5
    assert sum(point.count for point in points["gen_ai.server.request.duration"]) == 5
    assert [point.value for point in points["llmserve.requests.running"]] == [0]
    buckets = points["gen_ai.server.time_to_first_token"][0].explicit_bounds
    assert buckets[0] == 0.001


async def test_metrics_count_tokens_and_times():
    rig = Rig()
    async with rig.manager as manager:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(manager.generate, GenerationRequest("hello", sampling=Sampling(max_tokens=10, ignore_eos=True)))
        points, snapshot = rig.points(), manager.metrics()
    tokens = {point.attributes["gen_ai.token.type"]: point.value for point in points["llmserve.tokens"]}
    assert tokens == {"input": snapshot["tokens"]["prompt"], "output": 30}
    (first,) = points["gen_ai.server.time_to_first_token"]
    assert first.sum == pytest.approx(snapshot["ttft"]["mean"] * 3)
    (each,) = points["gen_ai.server.time_per_output_token"]
    assert each.count == 3


class Failing:
    """A foreign tracer that fails."""

    def __init__(self, where):
        self.where = where
        self.headers = {}

    def begin(self, request, timeline):
        if self.where == "begin":
            raise RuntimeError("begin")
        return self

    def end(self, timeline):
        raise RuntimeError("end")


@pytest.mark.parametrize("where", ["begin", "end"])
async def test_a_tracer_that_fails_costs_no_request(where, caplog):
    async with EngineManager(SimulatedEngine(SimulatedConfig()), tracer=Failing(where)) as manager:
        assert (await manager.generate("hi", sampling=Sampling(max_tokens=2))).usage.completion_tokens == 2
        assert manager.statistics().open == 0
    assert "failed" in caplog.text


def test_a_service_is_named_by_the_environment_and_needs_no_installed_package(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    # In every way of importing it.
    monkeypatch.setattr("llmserve.observability.opentelemetry.version", absent, raising=False)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    found = _resource().attributes
    assert (found["service.name"], found["service.version"], found["deployment.environment"]) == ("chat", __version__, "test")
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert _resource().attributes["service.name"] == "llmserve"
