"""The fast path of real cores: tokens use it, and its output and counts are those of vLLM."""

import copy
import json

import prometheus_client
import pytest

from benchmarks.stand_ins import recorded_steps
from llmserve import Sampling
from llmserve.engines.vllm.fast_path import FastPath, PathCounts, is_plain
from llmserve.engines.vllm.outputs import Receiver

# The model does not generate this text. A request with a stop string takes vLLM's own path.
UNSAID = "\x00 no model says this"


def counted(*names):
    """Return vLLM's own series, summed over their labels."""
    samples = [sample for family in prometheus_client.REGISTRY.collect() for sample in family.samples]
    return [sum(sample.value for sample in samples if sample.name == name) for name in names]


def paths(manager):
    engine = manager.metrics()["engine"]
    return engine["fast_path_tokens"], engine["slow_path_tokens"]


@pytest.mark.parametrize("prompt", ["Once upon a time", "Emojis: 😀 🎉 🇫🇷 👩‍👩‍👧", "Wörter: ä ö ü ß 漢字"])
async def test_a_real_core_s_tokens_take_it_and_it_says_and_counts_what_vllm_does(manager, prompt):
    series = ("vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_count", "vllm:time_to_first_token_seconds_count")
    answers, counts, taken = [], [], []
    for stop in ((), (UNSAID,)):
        before, was = counted(*series), paths(manager)
        sampling = Sampling(max_tokens=64, temperature=0.0, ignore_eos=True, stop=stop)
        answer = await manager.generate(prompt, sampling=sampling)
        answers.append((answer.text, answer.token_ids, answer.finish_reason, answer.usage.completion_tokens))
        counts.append([after - was for after, was in zip(counted(*series), before, strict=True)])
        taken.append(tuple(after - was for after, was in zip(paths(manager), was, strict=True)))
    assert answers[0] == answers[1]
    assert counts == [[64, 63, 1]] * 2
    # All tokens but the first and the last.
    assert taken == [(62, 2), (0, 64)]


def shape(described):
    """Return the fields with types, names and classes, without numbers, which vary by machine."""
    if isinstance(described, dict):
        return {name: shape(value) for name, value in described.items()}
    if isinstance(described, list):
        return [shape(value) for value in described]
    return described if isinstance(described, str | None) else type(described).__name__


async def test_the_stubbed_core_of_the_benchmarks_sends_what_a_real_core_sends(manager):
    """Otherwise `python -m benchmarks overhead` would measure a path that no real core uses."""
    recorded = json.loads(recorded_steps.FILE.read_text())
    if recorded["vllm"] != manager.engine.info.version:
        pytest.skip(f"the steps were recorded on vLLM {recorded['vllm']}")
    assert shape(await recorded_steps.record(manager)) == shape(recorded["steps"])
    steps = recorded_steps.RecordedSteps()
    for which in recorded_steps.STEPS:
        made = steps.step([steps.output(which, "r", 2000, 1.0)], 1.0)
        described = recorded_steps.describe_step(made)
        assert shape(described["output"]) == shape(recorded["steps"][which]["output"])
        assert shape(described["step"]) == shape(recorded["steps"]["middle"]["step"])


class Sink:
    def __init__(self):
        self.text, self.token_ids, self.ended = "", [], None

    def put(self, delta, timings=None):
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.ended = delta.finish_reason

    def fail(self, error):
        raise error


class Processor:
    """vLLM's output processor with one request, with or without the fast path."""

    def __init__(self, engine, *, fast, **more):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

        self.sink, self.counts = Sink(), PathCounts()
        llm = engine.running_llm
        self.processor = OutputProcessor(llm.get_tokenizer(), log_stats=True, **more)
        if fast:
            FastPath(self.processor, self.counts)
        params = SamplingParams(max_tokens=100, output_kind=RequestOutputKind.DELTA)
        fields = {"mm_features": None, "pooling_params": None, "lora_request": None, "cache_salt": None, "data_parallel_rank": None}
        request = EngineCoreRequest(request_id="r", prompt_token_ids=[1, 2], sampling_params=params, arrival_time=0.0, **fields)
        request.external_req_id = "r"
        collector = RequestOutputCollector(params.output_kind, "r")
        self.processor.add_request(request, None, None, 0, collector)
        sampling = Sampling()
        receiver = Receiver("r", self.sink, sampling, {"r"}, str, lambda _: None)
        self.finished = []
        collector.put = lambda output: (self.finished.append(output) if output.finished else None, receiver.put(output))
        assert is_plain(sampling)
        FastPath.open(collector, receiver)

    def step(self, token_ids, at, version, **fields):
        from vllm.v1.engine import EngineCoreOutput
        from vllm.v1.metrics.stats import IterationStats

        statistics = IterationStats()
        weights = {} if version is None else {"weight_version": version}
        self.processor.process_outputs([EngineCoreOutput("r", token_ids, **fields)], at, statistics, **weights)
        found = copy.copy(vars(statistics))
        # Remove what depends on the wall clock.
        for name in ("iteration_timestamp", "time_to_first_tokens_iter", "finished_requests"):
            found.pop(name)
        found["prompt_token_stats"] = vars(found["prompt_token_stats"])
        return found


def versions(count):
    """Return weight versions for `count` tokens: they change in mid-answer, if vLLM has any."""
    from vllm.v1.engine.output_processor import RequestState

    if not hasattr(RequestState, "track_weight_version"):
        return [None] * count
    return ["a"] * 3 + ["b"] * 4 + ["a"] * (count - 7)


async def test_a_change_of_weights_and_of_any_other_field_is_left_to_vllm(engine):
    from vllm.v1.engine import FinishReason

    both = [Processor(engine, fast=fast) for fast in (True, False)]
    ids = [2000, 2037, 2074, 2111, 2148, 2185, 2222, 2259, 2296, 2333, 2370, 2407]
    weights = versions(len(ids))
    for number, (token, version) in enumerate(zip(ids, weights, strict=True)):
        fields = {"finish_reason": FinishReason.LENGTH} if number == len(ids) - 1 else {}
        if number == 9:
            fields["num_nans_in_logits"] = 1
        one, two = (each.step([token], float(number), version, **fields) for each in both)
        assert one == two
    fast, slow = both
    assert fast.sink.__dict__ == slow.sink.__dict__
    assert fast.sink.token_ids == ids
    assert fast.sink.ended == "length"
    (ours,), (theirs,) = fast.finished, slow.finished
    assert getattr(ours.outputs[0], "weight_versions", None) == getattr(theirs.outputs[0], "weight_versions", None)
    # The first, the last, two changes of version, and an output with a field besides its tokens.
    changes = 0 if weights[0] is None else 2
    assert (fast.counts.fast, fast.counts.slow) == (len(ids) - 3 - changes, 3 + changes)


async def test_tokens_that_vllm_holds_back_are_left_to_it(engine):
    held = Processor(engine, fast=True, stream_interval=4)
    for number in range(8):
        held.step([2000 + number], float(number), versions(8)[0])
    assert (held.counts.fast, held.counts.slow) == (0, 8)
    assert held.sink.token_ids == list(range(2000, 2005))


async def test_an_unknown_argument_leaves_everything_to_vllm(engine):
    both = Processor(engine, fast=False)
    seen = []
    both.processor.process_outputs = lambda *arguments, **more: seen.append((len(arguments[0]), more))
    FastPath(both.processor, both.counts)
    both.processor.request_states["r"].is_prefilling = False
    from vllm.v1.engine import EngineCoreOutput

    both.processor.process_outputs([EngineCoreOutput("r", [2000])], 0.0, None, something_new=1)
    assert seen == [(1, {"something_new": 1})]
    assert (both.counts.fast, both.counts.slow) == (0, 1)
