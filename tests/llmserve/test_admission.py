"""Admission against a model of it: a hypothesis state machine, and the arithmetic of waiting."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve import SLO, AdmissionConfig
from llmserve.admission import AdmissionController, FixedLimit, Refusal, Ticket, TicketState, Unlimited, build_admission

LIMIT, MAX_WAITING, TENANT_LIMIT = 3, 4, 5


class AdmissionMachine(RuleBasedStateMachine):
    """The model: a list of who runs, and a list of who waits in the order of priority and arrival."""

    def __init__(self):
        super().__init__()
        self.controller = AdmissionController(FixedLimit(LIMIT), max_waiting=MAX_WAITING, tenant_limit=TENANT_LIMIT)
        self.now = 0.0
        self.running = []
        self.waiting = []
        self.woken = []
        self.refused = 0

    def model_pump(self):
        granted = []
        while self.waiting and len(self.running) < LIMIT:
            best = min(self.waiting, key=lambda ticket: ticket.priority)  # min keeps the first of equals
            self.waiting.remove(best)
            self.running.append(best)
            granted.append(best)
        return granted

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(tenant=st.sampled_from("ab"), priority=st.integers(-1, 1))
    def offer(self, tenant, priority):
        ticket = Ticket(tenant=tenant, priority=priority)
        of_tenant = sum(other.tenant == tenant for other in self.running + self.waiting)
        refused = self.controller.offer(ticket, self.now)
        if of_tenant >= TENANT_LIMIT:
            assert refused.reason is Refusal.TENANT_LIMIT
        elif not self.waiting and len(self.running) < LIMIT:
            assert refused is None
            self.running.append(ticket)
        elif len(self.waiting) >= MAX_WAITING:
            assert refused.reason is Refusal.QUEUE_FULL
        else:
            assert refused is None
            self.waiting.append(ticket)
        if refused is not None:
            self.refused += 1
            assert 0.1 <= refused.retry_after <= 30
            assert ticket.state is TicketState.DONE

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_running_one_leaves(self, data):
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        assert self.controller.leave(ticket, self.now) == self.model_pump()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_waiting_one_leaves(self, data):
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        assert self.controller.leave(ticket, self.now) == []

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_waiting_one_gives_up(self, data):
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        refused, granted = self.controller.give_up(ticket, self.now)
        self.refused += 1
        assert refused.reason is Refusal.WAITED_TOO_LONG
        assert granted == []

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leaving_twice_changes_nothing(self, data):
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.controller.leave(ticket, self.now)
        self.model_pump()
        before = self.controller.statistics(self.now)
        assert self.controller.leave(ticket, self.now) == []
        assert self.controller.statistics(self.now) == before

    @invariant()
    def it_agrees_with_the_model(self):
        statistics = self.controller.statistics(self.now)
        assert (statistics.running, statistics.waiting) == (len(self.running), len(self.waiting))
        assert all(ticket.state is TicketState.RUNNING for ticket in self.running)
        assert all(ticket.state is TicketState.WAITING for ticket in self.waiting)
        assert sum(statistics.refused.values()) == self.refused

    @invariant()
    def it_never_exceeds_the_limit_and_never_idles_while_someone_waits(self):
        statistics = self.controller.statistics(self.now)
        assert statistics.running <= LIMIT
        assert statistics.running == LIMIT or statistics.waiting == 0

    def teardown(self):
        for ticket in [*self.waiting, *self.running]:
            self.controller.leave(ticket, self.now)
        statistics = self.controller.statistics(self.now)
        assert (statistics.running, statistics.waiting) == (0, 0)
        assert not self.controller._tenants


TestAdmission = AdmissionMachine.TestCase


def busy(controller, count, now=0.0):
    tickets = [Ticket() for _ in range(count)]
    for ticket in tickets:
        assert controller.offer(ticket, now) is None
    return tickets


def test_retry_after_is_the_time_the_line_takes_at_the_rate_it_moves():
    controller = AdmissionController(FixedLimit(1), max_waiting=4)
    tickets = busy(controller, 5)
    # Two departures, half a second apart: two a second.
    controller.leave(tickets[0], 1.0)
    controller.leave(tickets[1], 1.5)
    busy(controller, 2, now=1.5)
    refused = controller.offer(Ticket(), 1.5)
    assert refused.reason is Refusal.QUEUE_FULL
    assert refused.retry_after == 4 / 2.0


def test_a_newcomer_bound_to_wait_too_long_is_refused_at_once():
    controller = AdmissionController(FixedLimit(1), max_wait=1.0)
    tickets = busy(controller, 4)
    controller.leave(tickets[0], 1.0)
    controller.leave(tickets[1], 2.0)
    # One a second, one ahead in the line: two seconds, one too many.
    refused = controller.offer(Ticket(), 2.0)
    assert refused.reason is Refusal.WOULD_WAIT_TOO_LONG
    assert refused.retry_after == 1.0


def test_those_behind_a_newcomer_do_not_lengthen_its_wait():
    controller = AdmissionController(FixedLimit(1), max_wait=1.5)
    tickets = busy(controller, 4)
    controller.leave(tickets[0], 1.0)
    controller.leave(tickets[1], 2.0)
    assert controller.offer(Ticket(priority=-1), 2.0) is None


def test_a_stalled_engine_lowers_the_rate():
    controller = AdmissionController(FixedLimit(1))
    tickets = busy(controller, 3)
    controller.leave(tickets[0], 1.0)
    controller.leave(tickets[1], 2.0)
    assert controller.statistics(2.0).drain_rate == 1.0
    assert controller.statistics(12.0).drain_rate == pytest.approx(1 / 11)


def test_idle_time_does_not_count_as_slowness():
    controller = AdmissionController(FixedLimit(2))
    for start in (0.0, 1000.0):
        first, second = busy(controller, 2, now=start)
        controller.leave(first, start + 1.0)
        controller.leave(second, start + 2.0)
    assert controller.statistics(1002.0).drain_rate == 1.0


def test_unlimited_admits_everyone():
    controller = AdmissionController(Unlimited(), max_waiting=0)
    busy(controller, 1000)
    assert controller.statistics(0.0).limit is None


def test_a_ticket_is_offered_once():
    controller = AdmissionController(FixedLimit(1))
    (ticket,) = busy(controller, 1)
    with pytest.raises(RuntimeError, match="offered once"):
        controller.offer(ticket, 0.0)


@pytest.mark.parametrize(
    ("config", "slo", "expected"),
    [
        (AdmissionConfig(), SLO(), (18, 72, 30.0)),
        (AdmissionConfig(max_running=4), SLO(), (4, 16, 30.0)),
        (AdmissionConfig(max_running=4, max_waiting=0, max_wait=5), SLO(ttft=1), (4, 0, 1)),
        (AdmissionConfig(max_wait=0.5), SLO(ttft=1), (18, 72, 0.5)),
        (AdmissionConfig(max_running=0), SLO(), (None, 0, 30.0)),
    ],
)
def test_what_is_left_open_is_taken_from_the_engine(config, slo, expected):
    controller = build_admission(config, slo, max_num_seqs=16)
    assert (controller.policy.limit, controller.max_waiting, controller.max_wait) == expected
