"""LateGate: a state machine with an engine that reports its steps, and what each part learns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve import SLO
from llmserve.admission import AdmissionController, EngineSample, LateGate, Refusal, Ticket, TicketState
from llmserve.admission.kv_forecast import exceeds
from llmserve.admission.length_estimates import AnswerLengths, Lengths, Seen, bucket_of
from llmserve.admission.prediction import QueueState
from llmserve.admission.regression import FitWithError, Recent
from llmserve.admission.safety_margins import ErrorBudget, Preemptions, Reserve, Spread, StandingQueue
from llmserve.admission.service_rate import ServiceRate

SEQUENCES, TOKENS, CACHE = 4, 100, 1000
ANSWER = Lengths().mean()
ANSWER_OF_512 = Lengths().mean(most=512)
# Low demand; a burst of requests that passes; and lasting demand above the capacity.
LIGHT = QueueState(0.0, 0.0, 0.0, 0.5, 0.5, ANSWER)
LUMP = QueueState(1.5, 0.01, 1e-4, 1.2, 1.2, ANSWER)
OVERLOAD = QueueState(3.0, 0.01, 1e-4, 2.0, 2.0, ANSWER)


class LateGateMachine(RuleBasedStateMachine):
    """An engine of four slots that steps when the machine says so, and requests of all kinds."""

    def __init__(self):
        super().__init__()
        self.policy = LateGate(SLO(ttft=1.0, tpot=0.05), SEQUENCES, TOKENS)
        self.controller = AdmissionController(self.policy, max_waiting=8)
        self.now = 0.0
        self.steps, self.busy = 0, 0.0
        self.running, self.waiting = [], []
        self.told, self.begun = set(), set()

    def over(self, tickets):
        for ticket in tickets:
            assert ticket not in self.told
            self.told.add(ticket)
            self.waiting.remove(ticket)
            if ticket.state is TicketState.RUNNING:
                self.running.append(ticket)
            else:
                assert ticket.refused is not None

    @rule(tenant=st.sampled_from("ab"), priority=st.integers(0, 1), prompt=st.integers(1, 200), flexible=st.booleans())
    def offer(self, tenant, priority, prompt, flexible):
        fields = {"tenant": tenant, "priority": priority, "best_effort": flexible, "arrived": self.now}
        ticket = Ticket(**fields)
        if self.controller.screen(ticket, self.now) is not None:
            assert ticket.state is TicketState.DONE
            assert self.waiting
            return
        ticket.prompt_tokens, ticket.max_tokens = prompt, 50
        refused = self.controller.offer(ticket, self.now)
        if refused is not None:
            assert 0.1 <= refused.retry_after <= 30
        elif ticket.state is TicketState.RUNNING:
            self.running.append(ticket)
        else:
            assert self.running, "an idle engine makes no request wait"
            self.waiting.append(ticket)

    @precondition(lambda self: self.running)
    @rule(seconds=st.floats(0.001, 0.2), preempted=st.integers(0, 1), usage=st.floats(0, 1))
    def step(self, seconds, preempted, usage):
        self.now += seconds
        self.steps += 1
        self.busy += seconds
        facts = EngineSample(
            steps=self.steps, busy_seconds=self.busy, running=len(self.running), kv_usage=usage, kv_tokens=CACHE, preemptions=preempted
        )
        self.over(self.controller.record(facts, self.now))

    @precondition(lambda self: any(ticket not in self.begun for ticket in self.running))
    @rule(data=st.data())
    def first_token(self, data):
        ticket = data.draw(st.sampled_from([ticket for ticket in self.running if ticket not in self.begun]))
        self.begun.add(ticket)
        self.over(self.controller.first_token(ticket, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), generated=st.integers(0, 60), complete=st.booleans())
    def leave(self, data, generated, complete):
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        ticket.generated, ticket.complete = generated, complete
        self.over(self.controller.leave(ticket, self.now))
        assert self.controller.leave(ticket, self.now) == []

    @precondition(lambda self: any(ticket.state is TicketState.WAITING for ticket in self.waiting))
    @rule(data=st.data())
    def give_up(self, data):
        ticket = data.draw(st.sampled_from([ticket for ticket in self.waiting if ticket.state is TicketState.WAITING]))
        self.now = max(self.now, ticket.expires)
        refused, over = self.controller.give_up(ticket, self.now)
        if refused is not None:
            self.waiting.remove(ticket)
        else:
            assert ticket.relegated or ticket in self.policy._late
            assert ticket.expires > self.now or ticket.state is TicketState.RUNNING
        self.over(over)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds):
        self.now += seconds
        self.over(self.controller.pump(self.now))

    @invariant()
    def nobody_waits_who_might_run(self):
        if self.controller._line.length:
            assert self.policy.holds(self.controller._line.head(), self.now) is not None

    @invariant()
    def it_counts_what_there_is(self):
        statistics = self.controller.statistics(self.now)
        waiting = [ticket for ticket in self.waiting if ticket.state is TicketState.WAITING]
        assert (statistics.running, statistics.waiting) == (len(self.running), len(waiting))
        assert len(self.running) <= self.policy.limit
        assert self.policy._pending == sum(ticket.prompt_tokens for ticket in self.running if ticket not in self.begun)
        committed = sum(ticket.prompt_tokens + ticket.expected_tokens for ticket in self.running)
        assert self.policy.cache.committed == pytest.approx(committed)
        assert Spread.LOWEST <= self.policy.figures().margin <= Spread.HIGHEST
        assert 0 <= self.policy.reserve.share <= 1
        assert 0 <= self.policy.budget.left <= ErrorBudget.MAX_LEFT
        assert self.controller._line.cost == pytest.approx(sum(ticket.cost for ticket in waiting))

    def teardown(self):
        for ticket in [*self.waiting, *self.running]:
            self.controller.leave(ticket, self.now)
        assert not self.policy._live
        assert (self.policy._pending, self.policy.cache.committed) == (0, 0)
        assert not self.controller.tenants._accounts


TestLateGate = LateGateMachine.TestCase


def gate(slo=SLO(ttft=1.0, tpot=0.05), sequences=64, tokens=1000, cache=None):  # noqa: B008 - frozen
    """A controller whose engine has stepped, ten milliseconds at a time, with ten sequences."""
    controller = AdmissionController(LateGate(slo, sequences, tokens))
    tell(controller, 10, 0.01, 10, cache)
    return controller


def tell(controller, steps, seconds, running, cache=None, usage=0.0):
    last = controller.policy._sample or EngineSample()
    for _ in range(steps):
        last = EngineSample(
            steps=last.steps + 1, busy_seconds=last.busy_seconds + seconds, running=running, kv_tokens=cache, kv_usage=usage
        )
        controller.record(last, last.busy_seconds)


def offer(controller, now=0.0, **fields):
    ticket = Ticket(**{"prompt_tokens": 10, "max_tokens": 100, "arrived": now} | fields)
    refused = controller.offer(ticket, now)
    return ticket if refused is None else refused


def held(controller, **fields):
    """Return the constraint that holds the next ticket."""
    ticket = Ticket(**{"prompt_tokens": 10, "max_tokens": 100} | fields)
    ticket.expected_tokens = controller.answers.mean(most=ticket.max_tokens)
    return controller.policy.holds(ticket, 0.0)


# Gates


def test_prompts_wait_here_while_a_step_s_worth_of_them_is_in_the_engine():
    controller = gate()
    first = offer(controller, prompt_tokens=900)
    assert held(controller) is None
    second = offer(controller, prompt_tokens=200)
    assert held(controller) == "prefill"
    waiting = offer(controller)
    assert controller.first_token(first, 0.1) == [waiting]
    assert second.state is TicketState.RUNNING


def test_the_engine_s_slots_are_not_exceeded():
    controller = gate(sequences=3)
    for _ in range(3):
        ticket = offer(controller)
        controller.first_token(ticket, 0.0)
    assert held(controller) == "sequences"


def test_of_many_slots_a_few_have_a_waiting_successor_while_others_leave():
    controller = gate(sequences=64, slo=SLO(ttft=1.0))
    tickets = [offer(controller, now=1.0) for _ in range(64)]
    assert held(controller) == "sequences"
    waiting = [offer(controller, now=1.0) for _ in range(3)]
    # A slot is free again, and one more ticket may wait in the engine.
    assert controller.leave(tickets[0], 1.0) == waiting[:2]
    # When no ticket has left for a while, none may wait in the engine.
    assert controller.policy._spare(5.0) == 0


def test_steps_that_would_miss_the_target_hold_all_requests():
    controller = gate()
    offer(controller)
    assert held(controller) is None
    tell(controller, 200, 0.06, 10)
    assert held(controller) == "tpot"
    tell(controller, 200, 0.01, 10)
    assert held(controller) is None


def test_the_step_time_of_more_sequences_is_extrapolated():
    controller = gate()
    for running in (10, 20, 30, 10, 20, 30):
        tell(controller, 50, 0.01 + 0.001 * running, running)
    policy, nothing = controller.policy, Ticket(prompt_tokens=0)
    assert policy._step.b == pytest.approx(0.001, rel=0.05)
    # The last steps were those of thirty sequences, 40 ms each, and nothing runs yet: one sequence
    # alone would take 11 ms.
    assert policy._step_with(nothing) == pytest.approx(0.011, rel=0.15)
    for _ in range(29):
        controller.first_token(offer(controller), 0.0)
    assert policy._step_with(nothing) == pytest.approx(0.04, rel=0.05)


def test_the_cache_is_not_planned_fuller_than_it_is():
    controller = gate(slo=SLO(ttft=1.0), cache=1000)
    for _ in range(200):
        controller.answers.reached(-1, bucket_of(100))
        controller.answers.ended(bucket_of(100))
    for _ in range(3):
        controller.first_token(offer(controller, prompt_tokens=150), 0.0)
    tell(controller, 1, 0.01, 3, 1000, usage=0.45)
    # Three tickets will need 250 tokens each, and so would another one.
    assert held(controller, prompt_tokens=150) == "kv"
    assert held(controller, prompt_tokens=20) is None
    # At nine tenths of their answers the three are about to leave, and their memory is free before
    # another ticket needs it.
    tell(controller, 80, 0.01, 3, 1000, usage=0.7)
    assert held(controller, prompt_tokens=150) is None


def test_an_idle_engine_starts_any_ticket():
    controller = gate(cache=10)
    tell(controller, 100, 9.0, 1, 10)
    assert offer(controller, prompt_tokens=5000).state is TicketState.RUNNING


def test_it_learns_the_times_of_an_engine_whose_largest_step_is_unknown():
    policy = LateGate(SLO(ttft=1.0, tpot=0.05), 16, None)
    controller = AdmissionController(policy)
    for number in range(4):
        ticket = Ticket(prompt_tokens=1, max_tokens=1000)
        assert controller.offer(ticket, 0.0) is None
        controller.first_token(ticket, 0.01)
        controller.record(EngineSample(running=4), 0.01 * number)
    busy = 0.0
    for number in range(1, 401):
        # A step takes 10 ms for each sequence; in the end four of them run.
        running = 2 if number < 200 and number % 2 else 4
        busy += 0.01 * running
        controller.record(EngineSample(steps=number, busy_seconds=busy, running=running), busy)
    # A fifth would take the step from 40 to 50 ms, which is more than the target with its margin.
    assert policy.holds(Ticket(prompt_tokens=1, expected_tokens=10.0), busy) == "tpot"


def test_without_reports_of_steps_it_only_counts_and_says_so():
    controller = AdmissionController(LateGate(SLO(ttft=1.0, tpot=0.05), 2, None))
    assert "does not report its steps" in controller.statistics(0.0).counting
    controller.first_token(offer(controller), 0.0)
    controller.first_token(offer(controller), 0.0)
    assert held(controller) == "sequences"
    tell(controller, 1, 0.01, 2)
    assert controller.statistics(0.0).counting is None


# Targets


def learnt(controller, seconds_per_token=1e-3):
    """Prompts of many lengths took the given time for each token."""
    for tokens in range(10, 500, 10):
        ticket = offer(controller, prompt_tokens=tokens)
        controller.first_token(ticket, tokens * seconds_per_token)
        ticket.generated, ticket.complete = 10, True
        controller.leave(ticket, tokens * seconds_per_token)


def test_a_prompt_too_long_for_the_target_gets_its_own_reason():
    controller = gate()
    learnt(controller)
    assert offer(controller, prompt_tokens=2000).reason is Refusal.PROMPT_TOO_SLOW
    late = offer(controller, prompt_tokens=2000, best_effort=True)
    assert late.relegated
    assert controller.policy.terms(Ticket(prompt_tokens=500), LIGHT, 0.0).refusal is None


def test_a_deadline_counts_the_whole_answer():
    controller = gate()
    learnt(controller)
    # A tenth of a second to the first token, and some ten tokens of ten milliseconds.
    assert offer(controller, prompt_tokens=100, deadline=0.12).reason is Refusal.DEADLINE_TOO_SHORT
    assert offer(controller, prompt_tokens=100, deadline=1.0).state is TicketState.RUNNING


def test_a_waiting_one_is_given_up_when_it_could_not_be_in_time_any_more():
    policy = gate().policy
    controller = AdmissionController(policy)
    learnt(controller)
    ticket = Ticket(prompt_tokens=400, arrived=5.0)
    relaxed = policy.terms(ticket, LIGHT, 5.2).expires
    assert relaxed == pytest.approx(5.6, abs=0.01)
    assert policy.terms(ticket, OVERLOAD, 5.2).expires <= relaxed


def test_patience_knows_no_lengths():
    policy = gate().policy
    learnt(AdmissionController(policy))
    short, long = Ticket(prompt_tokens=10), Ticket(prompt_tokens=450)
    assert policy.patience(short, OVERLOAD) == policy.patience(long, OVERLOAD) < 0.25
    # A tenant that does not cause the overload does not suffer from it.
    modest = QueueState(3.0, 0.01, 1e-4, 2.0, 0.5, ANSWER)
    assert policy.patience(short, modest) > policy.patience(short, OVERLOAD)


def test_one_request_may_wait_however_slow_the_queue_is():
    policy = gate().policy
    learnt(AdmissionController(policy))
    slow = QueueState(3.0, 0.9, 0.01, 9.0, 9.0, ANSWER)
    assert policy.patience(Ticket(prompt_tokens=10), slow) == 0.9


def test_a_burst_is_served_late_instead_of_refused_while_the_budget_lasts():
    policy = gate().policy
    learnt(AdmissionController(policy))
    policy.budget.left = 5.0
    ticket = Ticket(prompt_tokens=100, arrived=9.0)
    assert policy.patience(ticket, LUMP) == policy.patience(ticket, LIGHT) == 2.0
    # With its prompt, which takes a tenth of a second, the total is at most twice the target, and
    # a ticket gets this only once.
    assert policy.overdue(ticket, LUMP, 9.9) == pytest.approx(10.9, abs=0.01)
    assert policy.overdue(ticket, LUMP, 9.9) is None
    assert policy.overdue(Ticket(prompt_tokens=100, arrived=9.0), OVERLOAD, 9.9) is None
    while policy.budget.spend():
        pass
    assert policy.overdue(Ticket(prompt_tokens=100, arrived=9.0), LUMP, 9.9) is None
    # Then each ticket that may be in time is accepted. In a burst as in an overload, the queue is
    # kept short.
    short, long = Ticket(prompt_tokens=10), Ticket(prompt_tokens=450)
    assert policy.patience(short, LIGHT) == pytest.approx(0.99, abs=0.005)
    assert policy.patience(long, LIGHT) == pytest.approx(0.55, abs=0.005)
    assert policy.patience(short, LUMP) == policy.patience(long, LUMP) < 0.5


def test_without_a_ttft_target_the_patience_is_max_wait():
    policy = LateGate(SLO(tpot=0.05), 4, 100, max_wait=7.0)
    assert policy.patience(Ticket(), LIGHT) == 7.0
    assert policy.terms(Ticket(), LIGHT, 1.0).expires == 8.0


def test_leave_to_be_late_given_by_another_s_leaving_outlasts_the_clock_that_was_set_before():
    controller = gate(tokens=TOKENS)
    learnt(controller)
    controller.policy.budget.left = 1.0
    first = offer(controller, now=5.0, prompt_tokens=TOKENS + 1)
    second = offer(controller, now=5.0, prompt_tokens=TOKENS + 1, arrived=5.0)
    assert second.state is TicketState.WAITING
    before = second.expires
    assert controller.pump(before + 0.001) == []
    assert second.expires > before + 0.001
    # The timer for the old time fires.
    assert controller.give_up(second, before + 0.002) == (None, [])
    assert second.state is TicketState.WAITING
    assert [decision.verdict for decision in controller.log.latest(1)] == ["may be late"]
    assert controller.leave(first, before + 0.003) == [second]
    assert second.state is TicketState.RUNNING


def test_a_timeout_makes_room_for_similar_requests():
    policy = gate().policy
    controller = AdmissionController(policy)
    learnt(controller)
    small = Ticket(prompt_tokens=10)
    # Prompts of up to 450 tokens have been seen. Until one of them times out, a small ticket only
    # needs room for itself.
    assert policy._size(small) == 10
    for _ in range(4):
        assert policy.overdue(Ticket(prompt_tokens=450), OVERLOAD, 9.0) is None
    assert policy._size(small) == policy._long_prompt() > 400
    assert policy._size(Ticket(prompt_tokens=1000)) == 1000


def test_the_reserve_fades_as_others_start():
    reserve = Reserve()
    reserve.on_timeout()
    assert reserve.share == Reserve.TIGHTER
    for _ in range(10_000):
        reserve.started()
    assert reserve.share < 0.01


def test_the_budget_for_late_ones_is_earned_slowly_and_not_without_end():
    budget = ErrorBudget()
    assert not budget.spend()
    for _ in range(1001):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 1
    for _ in range(10**5):
        budget.earn()
    assert budget.left == ErrorBudget.MAX_LEFT


# Learning


def spread_of(levels, *, bound=True, shock=False):
    spread = Spread()
    for number, level in enumerate(levels):
        if bound:
            spread.bound(number + 0.5)
        if shock:
            spread.watch(2.0, number + 0.5)
        spread.add(level, float(number))
    return spread


def test_the_margin_leaves_room_for_how_far_requests_fall_from_the_mean():
    narrow = spread_of([0.9] * 200).margin
    wide = spread_of([0.8, 1.0, 0.9, 1.2] * 50).margin
    assert wide < narrow <= Spread.HIGHEST


def test_a_slower_engine_does_not_wind_the_margin_down():
    """A light load does not wind it up, either: in both cases the bound does not hold requests."""
    slow = [2.0] * 300
    assert spread_of(slow).margin == Spread.LOWEST
    assert spread_of(slow, shock=True).margin == Spread().margin
    assert spread_of(slow, bound=False).margin == Spread().margin
    assert spread_of([0.1] * 300, bound=False).margin == Spread().margin


def test_preemptions_lower_the_cache_margin_and_time_restores_it():
    margin = Preemptions()
    margin.record(0, 0.9, 0.0)
    margin.record(3, 0.9, 1.0)
    taken = margin.margin
    assert Preemptions.LOWEST <= taken < 0.97
    margin.record(0, 0.1, 100.0)
    assert margin.margin == taken
    margin.record(0, 0.9, 105.0)
    assert taken < margin.margin <= 0.97
    for second in range(100):
        margin.record(1, 0.9, 200.0 + second)
    assert margin.margin == Preemptions.LOWEST


def test_forecasts_may_exceed_a_cache_that_never_fills():
    """A regression: forecasts of long answers held requests while the cache was three quarters full."""
    margin = Preemptions()
    for second in range(1000):
        margin.record(0, 0.75, float(second))
    assert margin.margin == Preemptions.HIGHEST > 1
    almost = Preemptions()
    for second in range(1000):
        almost.record(0, 0.65, float(second))
    assert almost.margin == Preemptions().margin


def test_answers_that_go_on_count_before_they_have_ended():
    """The first answers to end are the short ones."""
    patient, hasty = Lengths(), Lengths()
    for _ in range(50):
        for lengths in (patient, hasty):
            lengths.reached(-1, bucket_of(10))
            lengths.ended(bucket_of(10))
        patient.reached(-1, bucket_of(1000))
    assert hasty.mean() < 40
    assert patient.mean() > 500


def test_the_expected_length_is_that_of_similar_answers():
    lengths = Lengths()
    for _ in range(400):
        for tokens in (50, 150):
            lengths.reached(-1, bucket_of(tokens))
            lengths.ended(bucket_of(tokens))
    assert lengths.mean() == pytest.approx(100, rel=0.2)
    assert lengths.mean(beyond=100) == pytest.approx(150, rel=0.2)
    assert lengths.mean(most=30) == 30


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_the_expected_length_is_between_the_current_one_and_the_limit(beyond, most):
    expected = Lengths().mean(beyond=beyond, most=most)
    assert expected <= most
    assert expected >= min(most, beyond + 1)


@pytest.mark.parametrize("asked", [8, 64])
def test_clients_that_ask_for_few_tokens_do_not_make_answers_to_others_seem_short(asked):
    """A regression: after a warm-up with answers of 8 tokens, LateGate admitted an H200's cache twice over."""
    lengths, natural = AnswerLengths(), AnswerLengths()
    for _ in range(200):
        for seen, most in ((lengths, asked), (natural, None)):
            seen.left(Ticket(max_tokens=most, generated=asked, complete=True))
    assert natural.mean(most=512) == pytest.approx(asked, rel=0.5)
    assert lengths.mean(most=512) > 0.8 * ANSWER_OF_512
    assert lengths.mean(most=asked) == pytest.approx(asked, rel=0.5)


@pytest.mark.parametrize(("tokens", "bucket"), [(0, 0), (1, 0), (2, 3), (3, 4), (10, 10), (1_270_000, 62), (1_280_000, 63), (10**9, 63)])
def test_a_bucket_of_lengths_begins_a_quarter_above_the_one_before(tokens, bucket):
    assert bucket_of(tokens) == bucket


def test_old_lengths_fade():
    lengths = Lengths()
    for tokens in [1000] * 3000 + [10] * 6000:
        lengths.reached(-1, bucket_of(tokens))
        lengths.ended(bucket_of(tokens))
    assert lengths.mean() < 30
    seen = Seen()
    for value in [1000] * 200_000 + [10] * 6000:
        seen.add(value)
    assert seen.quantile(0.97) < 20


def test_a_line_is_found_through_noise_and_never_falls():
    line = FitWithError()
    for number in range(400):
        x = number % 20
        line.add(x, 3 + 2 * x + (0.1 if number % 2 else -0.1))
    assert (line.a, line.b) == (pytest.approx(3, rel=0.1), pytest.approx(2, rel=0.1))
    assert line.deviation == pytest.approx(0.1, rel=0.5)
    for number in range(400):
        line.add(number % 20, 100 - number % 20)
    assert line.b == 0


def test_recent_steps_are_those_of_about_a_second_or_sixteen():
    recent = Recent()
    for _ in range(1000):
        recent.add(0.01, 1, 4)
    for _ in range(300):
        recent.add(0.02, 1, 8)
    assert recent.step == pytest.approx(0.02, rel=0.02)
    assert recent.mean_running == pytest.approx(8, rel=0.02)
    slow = Recent()
    for seconds in [1.0] * 20 + [2.0]:
        slow.add(seconds, 1, 1)
    assert 1.0 < slow.step < 1.2


def test_a_new_process_counts_its_steps_from_the_start():
    """A regression: with more steps than the last process and less time, it raised OverflowError."""
    policy = LateGate(SLO(ttft=1.0, tpot=0.05), 4, 100)
    for number, (steps, busy) in enumerate([(0, 0.0), (10, 1000.0), (20, 0.2), (30, 0.4)]):
        policy.record(EngineSample(steps=steps, busy_seconds=busy, running=1), float(number))
    assert policy.figures().step_seconds > 0


def queue_after(starts):
    queue = StandingQueue()
    for waited in starts:
        queue.started(waited=waited, pressure=2.0)
    return queue


def test_a_queue_that_ran_empty_in_an_overload_may_be_longer():
    state = QueueState(3.0, 0.01, 1e-4, 5.0, 5.0, ANSWER)
    steady, gaps = queue_after([True] * 100), queue_after([False, True, True] * 10)
    assert steady.patience(0.8, state, 0.01) == pytest.approx(0.2)
    assert gaps.patience(0.8, state, 0.01) > 0.7
    assert queue_after([False] * 5 + [True] * 500).share == StandingQueue.LOWEST
    light = StandingQueue()
    light.started(waited=False, pressure=0.5)
    assert light.share == StandingQueue.LOWEST


def test_only_a_wait_for_room_grows_with_the_request():
    queue = StandingQueue()
    for _ in range(300):
        queue.held("stall")
    assert queue.for_room < 0.02
    for _ in range(300):
        queue.held("kv")
    assert queue.for_room > 0.98


def test_the_service_rate_is_measured_only_under_excess_demand():
    rate = ServiceRate()
    rate.offered("a", 10.0, 0.0)
    rate.served(10.0)
    rate.advance(0.0, full=True)
    rate.advance(1.0, full=True)
    rate.served(10.0)
    rate.advance(2.0, full=True)
    rate.advance(100.0, full=False)
    assert rate.per_second == pytest.approx(10.0)
    assert rate.pressure < 0.01


def test_a_backlog_is_what_is_asked_for_too_much_and_an_engine_with_room_has_none():
    rate = ServiceRate()
    for _ in range(3):
        rate.served(10.0)
    rate.advance(0.0, full=True)
    rate.advance(3.0, full=True)
    assert rate.per_second == pytest.approx(10.0)
    # A burst of work for a second and a half is processed.
    rate.offered("a", 15.0, 3.0)
    assert rate.backlog == pytest.approx(1.5)
    rate.advance(4.0, full=True)
    assert rate.backlog == pytest.approx(0.5)
    # Demand a tenth above the capacity is little, but it adds up, to a bound.
    for second in range(5, 100):
        rate.offered("a", 11.0, float(second))
        rate.advance(float(second), full=True)
        rate.served(10.0)
    assert 5.0 <= rate.backlog <= ServiceRate.LONGEST
    rate.advance(101.0, full=False)
    assert rate.backlog < 1.0


def test_a_long_prompt_does_not_make_an_overload_of_itself():
    """A regression: its own demand counted before the decision, and led to its refusal."""
    controller = gate(sequences=1, tokens=TOKENS)
    learnt(controller)
    controller.policy.budget.left = 0.0
    running = offer(controller, now=600.0)
    assert running.state is TicketState.RUNNING
    assert controller._rate.backlog < 0.5
    seen = []
    patience = controller.policy.patience
    controller.policy.patience = lambda ticket, queue: seen.append(queue.backlog) or patience(ticket, queue)
    offer(controller, now=600.0, prompt_tokens=50_000)
    offer(controller, now=600.0)
    assert seen[0] < 0.5 < seen[1]


# The peak of the cache


def brute_force(sequences):
    """Simulate each step: all sequences grow by one token, and complete ones leave."""
    left = [[remaining, cached] for remaining, cached in sequences]
    most = sum(cached for _, cached in left)
    while left:
        left = [[remaining - 1, cached + 1] for remaining, cached in left]
        most = max(most, sum(cached for _, cached in left))
        left = [one for one in left if one[0] > 0]
    return most


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=12))
def test_the_peak_is_what_growing_step_by_step_comes_to(sequences):
    most = brute_force(sequences)
    assert exceeds(sequences, most - 1)
    assert not exceeds(sequences, most)
