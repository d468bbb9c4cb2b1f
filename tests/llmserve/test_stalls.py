"""The stalls that running answers can bear while prompts are computed."""

import logging
import math

import pytest

from llmserve import SLO
from llmserve.admission import Ticket
from llmserve.admission.regression import LinearFit
from llmserve.admission.stalls import StallBudget, StepModel, StepSize

TARGET, PLAIN = 0.05, 0.01
# A prompt of 5,000 tokens takes 0.1 s, of which 0.04 s are in the time of its step below the target.
MODEL = StepModel(spare=TARGET - PLAIN, token=2e-5, tokens=8192)
PROMPT, STALL = 5000, 0.06


def budget(lengths=()):
    found = StallBudget()
    for length in lengths:
        found.ended(Ticket(generated=length, complete=True))
    return found


def answering(stalls, expected=100.0, prompt_tokens=1):
    """Start a prompt and let its first token come."""
    ticket = Ticket(expected_tokens=expected)
    lot = stalls.started(prompt_tokens)
    stalls.computed(lot, prompt_tokens)
    stalls.answers(ticket)
    return ticket


def step(stalls, count=1, seconds=PLAIN):
    stalls.stepped(count, count * seconds, TARGET)


def test_a_prompt_s_stall_is_what_its_steps_take_above_the_target():
    assert MODEL.stall(PROMPT) == pytest.approx(STALL)
    assert MODEL.stall(0) == 0
    assert MODEL.stall(1000) < 0
    assert MODEL.stall(10_000) == pytest.approx(0.2 - 2 * 0.04)
    assert StepModel(0.04, 2e-5, 0).stall(10_000) == pytest.approx(0.16)


def test_the_report_says_what_a_large_step_costs_and_which_step_costs_nothing():
    # A full step takes 0.17 s. After it, 3.1 steps of 0.01 s make up for the 0.124 s above the target.
    assert MODEL.report(PLAIN, TARGET, 256) == (
        "a step of max_num_batched_tokens=8192 takes 0.17 s, 3.5 times slo.tpot: under load, prompts wait until running answers have made "
        "up for it, which costs up to 15% of the prompt tokens per second; max_num_batched_tokens=1984 costs nothing"
    )
    assert StepModel(0.04, 2e-5, 1984).report(PLAIN, TARGET, 256) is None
    assert StepModel(0.04, 2e-5, 2048).report(PLAIN, TARGET, 256) is None
    assert "max_num_batched_tokens=4096 costs" in (MODEL.report(PLAIN, TARGET, 4096) or "")
    assert MODEL.report(PLAIN, TARGET, 8192) is None


def test_where_nothing_answers_any_prompt_may_start():
    assert not budget().exceeded(10**6, MODEL)


def test_an_answer_that_may_end_with_any_step_first_saves_the_time_of_a_stall():
    stalls = budget()
    answering(stalls)
    assert not stalls.exceeded(1000, MODEL)
    assert stalls.exceeded(PROMPT, MODEL)
    step(stalls)
    assert stalls.exceeded(PROMPT, MODEL)
    step(stalls)
    assert not stalls.exceeded(PROMPT, MODEL)
    # The step with the prompt spends what was saved.
    step(stalls, seconds=0.11)
    assert stalls.exceeded(PROMPT, MODEL)


def test_an_answer_below_the_shortest_length_borrows_the_time_of_the_steps_to_come():
    stalls = budget([20] * 100)
    answering(stalls)
    assert not stalls.exceeded(PROMPT, MODEL)
    # The shortest answer has between 16 and 20 tokens. So it can bear between 0.6 and 0.76 s of
    # stalls, of which each of these steps takes 0.1 s.
    for _ in range(5):
        step(stalls, seconds=PLAIN + 0.1)
        assert not stalls.exceeded(2000, MODEL)
    for _ in range(2):
        step(stalls, seconds=PLAIN + 0.1)
    assert stalls.exceeded(PROMPT, MODEL)


def test_an_answer_that_has_ended_bears_nothing():
    stalls = budget()
    ticket = answering(stalls)
    assert stalls.exceeded(PROMPT, MODEL)
    stalls.ended(ticket)
    assert not stalls.exceeded(PROMPT, MODEL)


def test_prompts_of_one_lot_fill_one_step_and_no_more():
    stalls = budget()
    answering(stalls)
    step(stalls, 100)
    stalls.started(PROMPT)
    # The same step computes both.
    assert not stalls.exceeded(3000, MODEL)
    # The rest of a longer prompt would hold up the first one's answer.
    assert stalls.exceeded(3 * PROMPT, MODEL)
    step(stalls)
    # A later step computes it, when the first one's answer runs.
    assert stalls.exceeded(PROMPT, MODEL)
    assert not stalls.exceeded(1000, MODEL)


def test_an_idle_engine_computes_its_first_prompt_alone():
    stalls = budget()
    stalls.started(PROMPT)
    assert stalls.exceeded(3000, MODEL)
    assert not stalls.exceeded(1000, MODEL)


def test_a_few_answers_may_be_late():
    stalls = budget()
    answering(stalls, expected=200.0)
    stalls.left = 0.0
    step(stalls)
    assert stalls.exceeded(PROMPT, MODEL)
    # It lacks half a step's time, so it is late if it ends with the next step: one of 400.
    stalls.left = 1 / 300
    assert not stalls.exceeded(PROMPT, MODEL)
    stalls.started(PROMPT)
    assert 0 <= stalls.left < 1 / 1000
    # Each answer earns a little.
    for _ in range(1000):
        answering(stalls)
    assert stalls.left == StallBudget.MAX_LEFT


def test_an_answer_that_is_late_in_any_case_keeps_no_prompt_waiting():
    stalls = budget()
    stalls.left = 0.0
    answering(stalls, expected=10.0)
    step(stalls, seconds=0.3)
    # It can save 0.36 s in its nine steps to come, and owes 0.25 s.
    assert stalls.exceeded(PROMPT, MODEL)
    step(stalls, seconds=0.3)
    assert not stalls.exceeded(PROMPT, MODEL)


def test_ended_answers_are_forgotten():
    stalls = budget()
    for _ in range(1000):
        ticket = answering(stalls)
        step(stalls, 30)
        stalls.exceeded(PROMPT, MODEL)
        stalls.ended(ticket)
    assert len(stalls._old) < 50
    assert len(stalls._young) < 2
    assert not stalls._lots


# The size of a step


def step_size(most=8192, least=256, plain=PLAIN):
    """A size after 200 steps of 10 running sequences without prompts."""
    fit = LinearFit()
    for _ in range(200):
        fit.add(10, plain)
    return StepSize(fit, most, 256, least)


def compute(size, token, count=40, prompt_tokens=1000, tokens_in_a_step=500, plain=PLAIN):
    """Compute prompts beside 10 answers, in steps of some tokens."""
    for _ in range(count):
        for done in range(0, prompt_tokens, tokens_in_a_step):
            tokens = min(tokens_in_a_step, prompt_tokens - done)
            if done + tokens == prompt_tokens:
                size.computed(prompt_tokens)
            size.stepped(1, plain + token * tokens, 10)


def learn(size, target=TARGET, ttft=math.inf, prompt_tokens=4000):
    size.learn(10, target, SLO(ttft=None if ttft == math.inf else ttft, tpot=TARGET), prompt_tokens)
    return size.tokens


@pytest.mark.parametrize("tokens_in_a_step", [100, 500, 5000])
def test_the_size_fits_the_target_of_any_steps_that_it_is_learnt_from(tokens_in_a_step):
    size = step_size()
    compute(size, 2e-5, tokens_in_a_step=tokens_in_a_step)
    # 2,000 tokens take the 0.04 s that a step without prompts leaves, and 10 answers take one each.
    assert learn(size) == pytest.approx(2010, rel=0.01)


def test_prompt_tokens_that_the_cache_had_take_no_time():
    size = step_size()
    for _ in range(40):
        size.computed(1000)
        size.found(900)
        size.stepped(1, PLAIN + 2e-5 * 100, 10)
    assert learn(size) == pytest.approx(2010, rel=0.01)
    for _ in range(40):
        size.computed(1000)
        size.found(1000)
    # Their times say nothing.
    size.found(10**6)
    assert learn(size, 0.02) == pytest.approx(2010, rel=0.01)


def test_the_size_is_the_engine_s_own_until_enough_is_learnt():
    size = step_size()
    compute(size, 2e-5, count=7)
    assert learn(size) == 8192
    early = StepSize(LinearFit(), 8192, 256, 256)
    compute(early, 2e-5)
    assert learn(early) == 8192


@pytest.mark.parametrize(
    ("most", "least", "token", "plain", "ttft", "tokens"),
    [
        (1024, 256, 2e-5, PLAIN, 1.0, 1024),
        (8192, 2500, 2e-5, PLAIN, 1.0, 2500),
        # Prompts of 4,000 tokens take 0.4 s, and their steps may take 0.1 s more: 4 of 0.025 s.
        (8192, 16, 1e-4, 0.025, 1.0, 1010),
        # They may take no more.
        (8192, 16, 1e-4, 0.025, 0.5, 8192),
        (8192, 16, 1e-4, 0.025, math.inf, 260),
        # A step without prompts takes longer than the target, so no size meets it.
        (8192, 16, 1e-4, 0.06, 1.0, 8192),
    ],
)
def test_the_size_has_bounds(most, least, token, plain, ttft, tokens):
    size = step_size(most, least, plain)
    compute(size, token, plain=plain)
    assert learn(size, ttft=ttft) == pytest.approx(tokens, rel=0.02)


def test_the_size_changes_only_by_more_than_a_sixth():
    size = step_size()
    compute(size, 2e-5)
    sizes = [learn(size, target) for target in (0.05, 0.046, 0.053, 0.045, 0.04, 0.043, 0.05)]
    assert sizes == pytest.approx([2010, 2010, 2010, 2010, 1510, 1510, 2010], rel=0.01)


def test_the_log_says_once_which_size_is_set(caplog):
    caplog.set_level(logging.INFO, logger="llmserve.admission")
    size = step_size()
    compute(size, 2e-5)
    first, second = learn(size), learn(size, 0.04)
    assert second < first
    assert caplog.messages == [f"beside answers, a step now has at most {first} of max_num_batched_tokens=8192 tokens, as slo.tpot allows"]


def test_an_engine_with_a_fixed_size_gets_none_and_the_log_says_what_it_costs(caplog):
    caplog.set_level(logging.INFO, logger="llmserve.admission")
    size = step_size(least=None)
    compute(size, 2e-5)
    assert [learn(size), learn(size)] == [8192, 8192]
    assert size.wanted is None
    assert caplog.messages == [MODEL.report(PLAIN, TARGET, 256)]
