"""The reports of one or several cores, as the figures of one engine."""

from types import SimpleNamespace

import pytest

from llmserve.engines.vllm.steps import CoreSteps


def scheduler(running, waiting=0, kv_usage=0.0, prefix=None):
    return SimpleNamespace(num_running_reqs=running, num_waiting_reqs=waiting, kv_cache_usage=kv_usage, prefix_cache_stats=prefix)


def iteration(prompt=0, generated=0, preempted=0):
    return SimpleNamespace(num_prompt_tokens=prompt, num_generation_tokens=generated, num_preempted_reqs=preempted)


def test_a_step_is_timed_from_the_one_before_unless_that_left_nothing_to_do():
    steps = CoreSteps()
    steps.begin()
    for now, more in ((1.0, True), (1.5, True), (2.0, False), (9.0, True), (9.25, False)):
        steps.record(0, scheduler(1), iteration(generated=1), now=now, more=more)
    found = steps.statistics
    assert (found.steps, found.busy_steps, found.busy_seconds, found.generation_tokens) == (5, 3, 1.25, 5)


def test_a_step_of_which_another_client_has_the_scheduler_s_figures_counts_too():
    steps = CoreSteps()
    steps.begin()
    steps.record(0, scheduler(3, 2, 0.5), iteration(), now=1.0, more=True)
    steps.record(0, None, iteration(generated=3), now=1.1, more=True)
    found = steps.statistics
    assert (found.told, found.running, found.waiting, found.kv_usage) == (1.0, 3, 2, 0.5)
    assert (found.busy_steps, found.generation_tokens) == (1, 3)


def test_two_cores_are_one_engine_that_steps_when_both_have():
    steps = CoreSteps()
    # This client has the last two of four cores.
    steps.begin([2, 3])
    for number in range(11):
        for core, (running, usage) in ((2, (4, 0.2)), (3, (2, 0.6))):
            steps.record(core, scheduler(running, 1, usage), iteration(generated=running), now=0.1 * number, more=True)
    found = steps.statistics
    assert (found.running, found.waiting, found.kv_usage) == (6, 2, pytest.approx(0.4))
    # Ten busy steps of 0.1 s, each with a token for all six requests.
    assert (found.busy_steps, found.busy_seconds) == (10, pytest.approx(1.0))
    assert found.generation_tokens == 11 * 6
    # Every step counts as progress for a watchdog.
    assert found.steps == 22


def test_a_core_that_has_nothing_to_do_is_not_busy_while_the_other_is():
    steps = CoreSteps()
    steps.begin([0, 1])
    steps.record(0, scheduler(0), iteration(), now=0.0, more=True)
    steps.record(1, scheduler(1), iteration(), now=0.0, more=True)
    steps.record(0, scheduler(1), iteration(), now=60.0, more=True)
    assert steps.statistics.busy_steps == 0
    steps.record(0, scheduler(1), iteration(), now=60.5, more=True)
    steps.record(0, scheduler(1), iteration(), now=61.0, more=True)
    assert (steps.statistics.busy_steps, steps.statistics.busy_seconds) == (1, 0.5)


def test_an_engine_that_starts_again_keeps_its_counts_and_runs_nothing():
    steps = CoreSteps()
    steps.begin([0, 1])
    for number in range(5):
        for core in range(2):
            steps.record(core, scheduler(4, 1, 0.5), iteration(generated=4), now=float(number), more=True)
    steps.begin([0, 1])
    found = steps.statistics
    assert (found.running, found.waiting, found.kv_usage) == (0, 0, 0.0)
    assert (found.busy_steps, found.busy_seconds, found.generation_tokens) == (4, 4.0, 40)
    for number in range(3):
        for core in range(2):
            # Its first step does not follow another one.
            steps.record(core, scheduler(1), iteration(), now=100.0 + number, more=True)
    assert (steps.statistics.busy_steps, steps.statistics.busy_seconds) == (6, 6.0)
