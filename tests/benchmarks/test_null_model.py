"""Which requests of a step get a token from a model without computation.

`tests/vllm/test_null_core.py` runs the model in vLLM's core.
"""

from types import SimpleNamespace

from benchmarks.stand_ins.null_model import NullModel, paced


def scheduled(numbers, new=(), cached=(), finished=()):
    """Return a step as vLLM's scheduler describes it.

    `new` is id, prompt length, computed tokens, and known tokens of a preempted request. `cached`
    is id, computed tokens, answered tokens.
    """
    ids, computed, answered = zip(*cached, strict=True) if cached else ((), (), ())
    return SimpleNamespace(
        num_scheduled_tokens=numbers,
        finished_req_ids=set(finished),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_token_ids=[1] * prompt, num_computed_tokens=done, prefill_token_ids=[1] * known or None)
            for name, prompt, done, known in new
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=ids, num_computed_tokens=computed, num_output_tokens=answered),
    )


def counts(model, *args, **kwargs):
    ids, tokens = model.step(scheduled(*args, **kwargs))
    return dict(zip(ids, map(len, tokens), strict=True))


def test_a_prompt_in_parts_gets_its_token_with_the_last_part():
    model = NullModel()
    assert counts(model, {"a": 60, "b": 4}, new=[("a", 100, 0, 0), ("b", 4, 0, 0)]) == {"a": 0, "b": 1}
    assert counts(model, {"a": 40, "b": 1}, cached=[("a", 60, 0), ("b", 4, 1)]) == {"a": 1, "b": 1}
    assert counts(model, {"a": 1}, cached=[("a", 100, 1)], finished=["b"]) == {"a": 1}


def test_what_the_prefix_cache_has_counts_as_computed():
    assert counts(NullModel(), {"a": 36, "b": 35}, new=[("a", 100, 64, 0), ("b", 100, 64, 0)]) == {"a": 1, "b": 0}


def test_a_preempted_request_computes_its_answer_again_before_it_goes_on():
    model = NullModel()
    counts(model, {"a": 10, "b": 10}, new=[("a", 10, 0, 0), ("b", 10, 0, 0)])
    # Both have 5 tokens when they are preempted. vLLM's first model runner gets b as a known
    # request, its second one gets a as a new one.
    assert counts(model, {"a": 8, "b": 8}, new=[("a", 10, 0, 15)], cached=[("b", 0, 5)]) == {"a": 0, "b": 0}
    assert counts(model, {"a": 7, "b": 7}, cached=[("a", 8, 5), ("b", 8, 5)]) == {"a": 1, "b": 1}


def test_ids_that_are_used_again_start_from_nothing():
    model = NullModel()
    counts(model, {"a": 10}, new=[("a", 10, 0, 0)])
    assert counts(model, {"a": 10}, new=[("a", 20, 0, 0)], finished=["a"]) == {"a": 0}


def test_steps_follow_one_another_at_the_pace():
    now = 100.0
    model = NullModel(pace=0.5, clock=lambda: now)
    assert [model.begin(), model.begin()] == [100.5, 101.0]
    now = 200.0
    assert model.begin() == 200.5


def test_a_step_takes_longer_for_each_sequence_and_token():
    model = paced("0.5:0.25:0.125")
    model.clock = lambda: 100.0
    counts(model, {"a": 3, "b": 1}, new=[("a", 3, 0, 0), ("b", 1, 0, 0)])
    assert model.begin() == 100.0 + 0.5 + 2 * 0.25 + 4 * 0.125
