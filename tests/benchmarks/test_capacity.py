"""The step-time model, fitted to an engine with an unknown law on a virtual clock."""

import math

import attrs
import pytest
from benchmarks_support import generate
from support.known_servers import Server, analysed, closed

from benchmarks.analysis.capacity import Capacity, HeldOut, StepTime, capacity, observe
from benchmarks.analysis.capacity import Load as Shape
from benchmarks.analysis.predict import predict
from benchmarks.analysis.summary import summarize
from benchmarks.targets.inprocess import InProcess
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine


async def observed(concurrency, prompt, repeat=0):
    workload = Workload(prompt=Fixed(prompt), output=Fixed(40), vocabulary=(1, 200), seed=repeat)
    engine = SimulatedEngine(SimulatedConfig(num_blocks=4096, max_num_seqs=32))
    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        load = Load(concurrency=concurrency, staggered=True)
        generator = generate(InProcess(manager), load, workload, requests=6 * concurrency)
        await generator.run()
    found = summarize(generator.measured.records)
    return observe(Shape(concurrency, found.prompt_tokens, found.output_tokens), found.tokens_per_second, generator.measured.records)


async def test_held_out_loads_are_predicted_better_than_by_interpolation():
    found = capacity([await observed(concurrency, 64) for concurrency in (1, 2, 4, 8, 16, 32)], max_num_seqs=32)
    assert len(found.held_out) == 6
    assert found.error < 0.05
    assert found.error < found.naive_error


async def test_held_out_lengths_are_predicted():
    found = capacity([await observed(8, prompt) for prompt in (32, 64, 128, 256)], max_num_seqs=32)
    assert found.error < 0.05


async def test_a_load_s_repeats_are_held_out_together():
    """Regression: each repeat was predicted from the other one and interpolated against itself."""
    loads = [await observed(concurrency, 64, repeat) for repeat in range(2) for concurrency in (1, 2, 4)]
    twice = capacity(loads)
    assert len(twice.held_out) == 6
    assert math.isfinite(twice.naive_error)
    assert capacity(loads[:3]).held_out[0].naive == twice.held_out[0].naive or twice.held_out[0].naive != loads[3].tokens_per_second


async def test_too_few_loads_make_no_model():
    assert capacity([await observed(concurrency, 64) for concurrency in (1, 2)]) is None
    assert capacity([]) is None


LINEAR = Server(step=lambda batch: 0.02 + 0.001 * batch)
QUEUE = attrs.evolve(LINEAR, step=lambda batch: 0.02 + 0.0001 * batch, max_batch=8, reports=())


@pytest.mark.parametrize(
    ("server", "concurrency", "truth", "name"), [(LINEAR, 48, 48 / 0.068, "step-time model"), (QUEUE, 48, 8 / 0.0208, "straight line")]
)
def test_the_better_of_model_and_straight_line_predicts(server, concurrency, truth, name):
    """Regression: on a queue the model predicted "10,000 tokens/s, give or take 181 %"."""
    analysis = analysed([closed(server, level) for level in (1, 2, 4, 8, 16, 32, 64)])
    said = predict(analysis, [concurrency], None, None).splitlines()[-1]
    assert f"by the {name}" in said
    assert float(said.split(": ")[1].split(" tokens/s")[0].replace(",", "")) == pytest.approx(truth, rel=0.06)


@pytest.mark.parametrize(
    ("predicted", "naive", "trusted"),
    [(110.0, 150.0, "model"), (150.0, 110.0, "line"), (150.0, 150.0, None), (110.0, None, "model"), (20.0, None, None)],
)
def test_nothing_is_predicted_by_what_is_off_on_the_run_itself(predicted, naive, trusted):
    held_out = [HeldOut(Shape(level, 64, 20), 100.0, predicted, naive) for level in (1, 2, 4)]
    found = Capacity(StepTime(0.02, 0.0, 0.0, 0.0), held_out)
    assert found.trusted == trusted
    analysis = analysed([])
    analysis.__dict__["capacity"] = {"t": found}
    said = predict(analysis, [8], None, None).splitlines()[-1]
    assert said.startswith("Predicted for concurrency 8" if trusted else "Nothing is predicted: the step-time model")
