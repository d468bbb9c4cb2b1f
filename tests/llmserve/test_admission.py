"""The controller and its queue: a hypothesis state machine, wait times, tenants."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve import (
    SLO,
    AdmissionConfig,
    ConfigurationError,
    Overloaded,
    TenantLimits,
    TenantOverloaded,
    TenantTable,
    UnknownTenant,
)
from llmserve.admission import (
    POLICIES,
    AdmissionController,
    EngineSample,
    FixedLimit,
    LateGate,
    Refusal,
    Tenants,
    Ticket,
    TicketState,
    Unlimited,
    UsageDelta,
    build_admission,
)  # fmt: skip
from llmserve.admission.fair_queue import FORGET, FairQueue
from llmserve.admission.service_rate import ServiceRate
from llmserve.admission.tenants import SPARE_ACCOUNTS

LIMIT, MAX_WAITING, TENANT_LIMIT = 3, 4, 5


class AdmissionMachine(RuleBasedStateMachine):
    """A fixed limit, three tenants, three priorities. The model holds all open tickets."""

    def __init__(self):
        super().__init__()
        tenants = Tenants(TenantTable(default=TenantLimits(concurrency=TENANT_LIMIT)))
        self.controller = AdmissionController(FixedLimit(limit=LIMIT, max_wait=5), max_waiting=MAX_WAITING, tenants=tenants)
        self.now = 0.0
        self.running = []
        self.waiting = []
        self.refused = 0
        self.told = set()

    def over(self, tickets):
        """Check tickets that stop waiting: each is reported once, in order within its kind."""
        for ticket in tickets:
            assert ticket not in self.told
            self.told.add(ticket)
            place = self.waiting.index(ticket)
            if ticket.state is TicketState.RUNNING:
                before = self.waiting[:place]
                assert not any((other.tenant, other.priority) == (ticket.tenant, ticket.priority) for other in before)
                self.running.append(ticket)
            else:
                assert ticket.refused.reason in (Refusal.DISPLACED, Refusal.WAITED_TOO_LONG)
                self.refused += 1
            self.waiting.remove(ticket)

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds):
        self.now += seconds
        self.over(self.controller.pump(self.now))

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(-1, 1))
    def offer(self, tenant, priority):
        ticket = Ticket(tenant=tenant, priority=priority)
        of_tenant = sum(other.tenant == tenant for other in self.running + self.waiting if other.state is not TicketState.DONE)
        free = len(self.running) < LIMIT
        refused = self.controller.offer(ticket, self.now)
        if refused is not None:
            self.refused += 1
            assert ticket.state is TicketState.DONE
            assert 0.1 <= refused.retry_after <= 30
            assert (refused.reason is Refusal.TENANT_LIMIT) == (of_tenant >= TENANT_LIMIT)
            assert refused.reason is Refusal.TENANT_LIMIT or not free
        elif ticket.state is TicketState.RUNNING:
            assert free
            assert not self.waiting
            self.running.append(ticket)
        else:
            assert not free
            self.waiting.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_running_one_leaves(self, data):
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.over(self.controller.leave(ticket, self.now))
        before = self.controller.statistics(self.now)
        assert self.controller.leave(ticket, self.now) == []
        assert self.controller.statistics(self.now) == before

    @precondition(lambda self: any(ticket.state is TicketState.WAITING for ticket in self.waiting))
    @rule(data=st.data(), patient=st.booleans())
    def a_waiting_one_leaves(self, data, patient):
        ticket = data.draw(st.sampled_from([ticket for ticket in self.waiting if ticket.state is TicketState.WAITING]))
        self.waiting.remove(ticket)
        if patient:
            self.over(self.controller.leave(ticket, self.now))
        else:
            # Nothing happens before the end of its patience.
            assert self.now >= ticket.expires or self.controller.give_up(ticket, self.now) == (None, [])
            self.now = max(self.now, ticket.expires)
            refused, over = self.controller.give_up(ticket, self.now)
            self.refused += 1
            assert refused.reason is Refusal.WAITED_TOO_LONG
            self.over(over)

    @invariant()
    def it_agrees_with_the_model(self):
        statistics = self.controller.statistics(self.now)
        displaced = sum(ticket.state is TicketState.DONE for ticket in self.waiting)
        assert (statistics.running, statistics.waiting) == (len(self.running), len(self.waiting) - displaced)
        assert all(ticket.state is TicketState.RUNNING for ticket in self.running)
        assert sum(statistics.refused.values()) == self.refused + displaced

    @invariant()
    def it_never_exceeds_the_limit_and_never_idles_while_someone_waits(self):
        statistics = self.controller.statistics(self.now)
        assert statistics.running <= LIMIT
        assert statistics.running == LIMIT or statistics.waiting == 0
        assert statistics.waiting <= MAX_WAITING

    def teardown(self):
        for ticket in [*self.waiting, *self.running]:
            self.controller.leave(ticket, self.now)
        statistics = self.controller.statistics(self.now)
        assert (statistics.running, statistics.waiting) == (0, 0)
        assert not self.controller.tenants._accounts


TestAdmission = AdmissionMachine.TestCase


def busy(controller, count, now=0.0, **fields):
    tickets = [Ticket(**fields) for _ in range(count)]
    for ticket in tickets:
        assert controller.offer(ticket, now) is None
    return tickets


# Waiting


def moving(**more):
    """At second 1, one ticket runs and three wait; three have started in that second."""
    controller = AdmissionController(FixedLimit(limit=1, **more))
    tickets = busy(controller, 6)
    controller.leave(tickets[0], 0.5)
    controller.leave(tickets[1], 1.0)
    return controller, tickets


def test_newcomers_that_would_wait_too_long_are_refused_with_different_retry_times():
    controller, _ = moving(max_wait=1.0)
    assert controller.forecast.wait("default", 0) == pytest.approx(4 / 3)
    refusals = [controller.offer(Ticket(), 1.0) for _ in range(3)]
    assert {refused.reason for refused in refusals} == {Refusal.WOULD_WAIT_TOO_LONG}
    # A third of a second passes between two served tickets, and so between the retries of refused
    # clients.
    first, second, third = (refused.retry_after for refused in refusals)
    assert second - first == pytest.approx(1 / 3)
    assert third - second == pytest.approx(1 / 3)


def test_hints_are_bounded_and_beyond_the_bound_spread():
    controller, _ = moving(max_wait=1.0)
    hints = [controller.offer(Ticket(request_id=str(number)), 1.0).retry_after for number in range(300)]
    assert max(hints) <= 30
    late = hints[100:]
    assert len(set(late)) > len(late) / 2


def test_it_is_seen_before_the_prompt_is_whether_any_would_be_refused():
    controller, _ = moving(max_wait=1.0)
    ticket = Ticket()
    assert controller.screen(ticket, 1.0).reason is Refusal.WOULD_WAIT_TOO_LONG
    assert ticket.state is TicketState.DONE
    assert controller.screen(Ticket(best_effort=True), 1.0) is None
    assert AdmissionController(FixedLimit(limit=1)).screen(Ticket(), 0.0) is None


def test_those_behind_a_newcomer_do_not_lengthen_its_wait():
    controller, _ = moving(max_wait=1.0)
    assert controller.offer(Ticket(priority=-1), 1.0) is None


def test_a_stalled_engine_lowers_the_rate():
    controller, _ = moving()
    before = controller.statistics(1.0).drain_rate
    controller.pump(12.0)
    assert controller.statistics(12.0).drain_rate < before / 4


def test_idle_time_does_not_count_as_slowness():
    controller = AdmissionController(FixedLimit(limit=1))
    for start in (0.0, 1000.0):
        first, second = busy(controller, 2, now=start)
        controller.leave(first, start + 1.0)
        controller.leave(second, start + 2.0)
    assert controller.statistics(1002.0).drain_rate == pytest.approx(1.0)


def test_a_deadline_shorter_than_the_queue_s_wait_is_refused():
    controller, _ = moving()
    assert controller.offer(Ticket(deadline=2.0, best_effort=True), 1.0).reason is Refusal.DEADLINE_TOO_SHORT
    assert controller.offer(Ticket(deadline=3.0), 1.0) is None


def test_a_ticket_that_can_start_is_not_refused_for_earlier_waits():
    controller, tickets = moving()
    for ticket in tickets[2:]:
        controller.leave(ticket, 1.0)
    assert controller.forecast.wait("default", 0) > 0.1
    assert controller.offer(Ticket(deadline=1.01), 1.0) is None


def test_unlimited_admits_all_requests():
    controller = AdmissionController(Unlimited(), max_waiting=0)
    busy(controller, 1000)
    assert controller.statistics(0.0).limit is None


def test_a_ticket_is_offered_once():
    controller = AdmissionController(FixedLimit(limit=1))
    (ticket,) = busy(controller, 1)
    with pytest.raises(RuntimeError, match="offered once"):
        controller.offer(ticket, 0.0)


# Best effort


def test_a_best_effort_request_is_not_refused_because_of_the_slo():
    controller, tickets = moving(max_wait=1.0)
    late = Ticket(best_effort=True, request_id="late")
    assert controller.offer(late, 1.0) is None
    assert late.relegated
    assert late.expires == 1.0 + controller.max_wait
    assert [decision.verdict for decision in controller.explain("late")] == ["relegated"]
    for running, successor in zip(tickets[2:], [*tickets[3:], late], strict=True):
        assert controller.leave(running, 1.0) == [successor]


def test_a_target_that_expires_in_the_queue_only_costs_its_position():
    controller = AdmissionController(FixedLimit(limit=1, max_wait=1.0), max_wait=30.0)
    running, patient, late = (Ticket(best_effort=True) for _ in range(3))
    for ticket in (running, late, patient):
        controller.offer(ticket, 0.0)
    refused, over = controller.give_up(late, 1.0)
    assert (refused, over) == (None, [])
    assert late.expires == 31.0
    assert controller.leave(running, 1.0) == [patient]
    refused, _ = controller.give_up(late, 31.0)
    assert refused.reason is Refusal.WAITED_TOO_LONG


# The queue


def test_a_flooding_tenant_only_waits_for_itself():
    controller = AdmissionController(FixedLimit(limit=1))
    busy(controller, 50, tenant="flood")
    modest = busy(controller, 2, tenant="modest")
    served = []
    running = next(iter(controller._running))
    for number in range(6):
        (running,) = controller.leave(running, float(number))
        served.append(running.tenant)
    assert served[:4].count("modest") == 2
    assert modest[0].granted < modest[1].granted


def test_a_weight_is_a_share():
    controller = AdmissionController(FixedLimit(limit=1), tenants=Tenants(TenantTable({"gold": TenantLimits(weight=3)})))
    busy(controller, 40, tenant="gold")
    busy(controller, 40, tenant="other")
    running = next(iter(controller._running))
    served = []
    for number in range(40):
        (running,) = controller.leave(running, float(number))
        served.append(running.tenant)
    assert served.count("gold") == 30


def test_in_a_full_queue_the_largest_tenant_loses_its_newest_ticket():
    controller = AdmissionController(FixedLimit(limit=1), max_waiting=3)
    flood = busy(controller, 4, tenant="flood")
    assert controller.offer(Ticket(tenant="flood"), 0.0).reason is Refusal.QUEUE_FULL
    assert controller.offer(Ticket(tenant="modest"), 0.0) is None
    assert flood[3].state is TicketState.DONE
    assert flood[3].refused.reason is Refusal.DISPLACED
    # The next pump reports it, once.
    assert controller.pump(0.0) == [flood[3]]
    assert controller.pump(0.0) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), min_size=30, max_size=120))
def test_tenants_that_keep_asking_are_served_alike(asked):
    """VTC's bound: two tenants that always wait differ by at most the cost of two requests."""
    line = FairQueue()
    for number, (tenant, cost) in enumerate(asked):
        line.push(Ticket(tenant=tenant, cost=float(cost)), number)
    served = dict.fromkeys("abc", 0.0)
    while set("abc") <= set(line._waiting):
        ticket = line.head()
        line.remove(ticket, 0.0)
        line.charge(ticket.tenant, ticket.cost)
        served[ticket.tenant] += ticket.cost
        assert max(served.values()) - min(served.values()) <= 2 * 100


def test_no_tenant_saves_up_while_away():
    line = FairQueue()
    for _ in range(100):
        line.push(Ticket(tenant="busy", cost=10), 0.0)
    for _ in range(50):
        ticket = line.head()
        line.remove(ticket, 0.0)
        line.charge(ticket.tenant, ticket.cost)
    for _ in range(50):
        line.push(Ticket(tenant="back", cost=10), 0.0)
    served = []
    for _ in range(20):
        ticket = line.head()
        line.remove(ticket, 0.0)
        line.charge(ticket.tenant, ticket.cost)
        served.append(ticket.tenant)
    assert 9 <= served.count("back") <= 11


def serve_in_two_lines(ticks, *, telling):
    """Serve a tenant that waits in both queues and one that waits in the first; return counts."""
    lines = FairQueue(), FairQueue()
    for line in lines:
        line.tally()
    served = {"everywhere": 0, "here": 0}
    for tick in range(ticks):
        for line, tenants in zip(lines, (("everywhere", "here"), ("everywhere",)), strict=True):
            for tenant in tenants:
                while line._waiting.get(tenant, 0) < 3:
                    line.push(Ticket(tenant=tenant, cost=1.0), float(tick))
            ticket = line.head()
            line.remove(ticket, float(tick))
            line.charge(ticket.tenant, ticket.cost)
            served[ticket.tenant] += 1
        if telling and tick % 10 == 0:
            told = [line.tally() for line in lines]
            lines[0].charge_elsewhere(told[1])
            lines[1].charge_elsewhere(told[0])
    return served


def test_queues_that_exchange_usage_share_the_total_capacity():
    # Without exchange the first queue gives each tenant half, so the second tenant gets a quarter
    # of the total.
    assert serve_in_two_lines(1000, telling=False)["here"] == pytest.approx(500, abs=20)
    assert serve_in_two_lines(1000, telling=True)["here"] == pytest.approx(1000, abs=20)


def test_service_elsewhere_while_no_ticket_waits_here_is_no_debt():
    line = FairQueue()
    line.charge_elsewhere({"busy": 1e6})
    line.push(Ticket(tenant="busy", cost=1.0), 0.0)
    # No other tenant waits.
    line.charge_elsewhere({"busy": 1e6})
    line.push(Ticket(tenant="other", cost=1.0), 0.0)
    assert line.head().tenant == "busy"
    line.charge_elsewhere({"busy": 1.0})
    assert line.head().tenant == "other"


def test_a_tally_begins_when_it_is_asked_for_and_is_of_what_came_since():
    line = FairQueue()
    line.charge("a", 5.0)
    assert line.tally() == {}
    line.charge("a", 5.0)
    line.charge("a", -2.0)
    line.charge("b", 1.0)
    assert line.tally() == {"a": 3.0, "b": 1.0}
    assert line.tally() == {}


def test_tenants_that_are_gone_are_forgotten():
    controller = AdmissionController(FixedLimit(limit=1))
    for number in range(10_000):
        (ticket,) = busy(controller, 1, tenant=f"tenant {number}", now=float(number))
        controller.leave(ticket, float(number))
    assert len(controller._line._served) <= 2 * FORGET + 2
    assert not controller.tenants._accounts
    assert len(controller._rate._tenants) <= controller._rate.TENANTS + 1


def test_a_worse_band_gets_its_turn_eventually():
    controller = AdmissionController(FixedLimit(limit=1), aging=5.0)
    (running,) = busy(controller, 1)
    (patient,) = busy(controller, 1, priority=9)
    for second in range(14):
        # Two tickets of the better band arrive for each that leaves.
        busy(controller, 2, priority=0, now=float(second))
        (running,) = controller.leave(running, float(second))
        assert (running is patient) == (second == 12)
        if running is patient:
            break
    # After five seconds it moves to their band, behind the seven that waited there by then.
    assert running is patient


# Explanations


def test_a_decision_explains_itself():
    controller, tickets = moving(max_wait=1.0)
    controller.offer(Ticket(request_id="no", prompt_tokens=7, priority=2, max_tokens=5), 1.0)
    (decision,) = controller.explain("no")
    assert (decision.verdict, decision.constraint) == ("refused", "would_wait_too_long")
    assert (decision.at, decision.request_id, decision.tenant, decision.expected_tokens) == (1.0, "no", "default", 5.0)
    assert (decision.running, decision.waiting, decision.prompt_tokens, decision.priority) == (1, 3, 7, 2)
    assert (decision.wait, decision.patience) == (pytest.approx(4 / 3), None)
    waits = Ticket(request_id="yes", priority=-1)
    controller.offer(waits, 1.0)
    controller.leave(tickets[2], 1.0)
    assert [(decision.verdict, decision.constraint) for decision in controller.explain("yes")] == [("waits", "limit"), ("started", None)]
    assert controller.explain("never seen") == []
    assert controller.statistics(3.0).held["limit"] > 0


def test_the_log_of_decisions_is_bounded():
    controller = AdmissionController(Unlimited())
    busy(controller, 3000)
    assert len(controller.log.latest(5000)) == 1024


# Tenants beside each other


def flooded(limit, quiet_every=4, flood=3):
    """Let a tenant flood a fixed limit beside a quiet one; return the last states of both's requests.

    One request leaves every tenth of a second, in the order of the starts. In that time the flood
    sends three, and every fourth time the quiet tenant sends one.
    """
    controller = AdmissionController(FixedLimit(limit=limit, max_wait=5.0))
    running, quiet, counts = [], [], []
    for number in range(400):
        now = 0.1 * number
        arrived = [Ticket(tenant="flood") for _ in range(flood)]
        if quiet_every and number % quiet_every == 0:
            arrived.append(Ticket(tenant="quiet"))
        for ticket in arrived:
            if controller.offer(ticket, now) is None and ticket.state is TicketState.RUNNING:
                running.append(ticket)
            if ticket.tenant == "quiet":
                quiet.append(ticket.state)
        counts.append(len(running))
        if len(running) >= limit - 1:
            running += [ticket for ticket in controller.leave(running.pop(0), now) if ticket.state is TicketState.RUNNING]
    return quiet[-50:], counts[-100:]


def test_a_quiet_tenant_finds_room_that_a_flood_leaves_free():
    """A regression: it waited for the next departure, which took seconds where answers are long."""
    quiet, counts = flooded(16)
    assert set(quiet) == {TicketState.RUNNING}
    assert set(counts) == {15, 16}


def test_the_smallest_engines_keep_no_room():
    quiet, counts = flooded(7)
    assert TicketState.WAITING in quiet
    assert set(counts) == {7}


@pytest.mark.parametrize("case", [{"quiet_every": 0}, {"quiet_every": 1, "flood": 1}], ids=["alone", "equals"])
def test_no_room_is_kept_where_no_tenant_asks_for_less_than_its_share(case):
    _, counts = flooded(16, **case)
    assert set(counts) == {16}


# Tenants' limits


def limited(**limits):
    return AdmissionController(Unlimited(), tenants=Tenants(TenantTable({"a": TenantLimits(**limits)})))


def test_requests_at_once():
    controller = limited(concurrency=1)
    (ticket,) = busy(controller, 1, tenant="a")
    refused = controller.offer(Ticket(tenant="a"), 0.0)
    assert refused.reason is Refusal.TENANT_LIMIT
    assert isinstance(refused.error(), TenantOverloaded)
    busy(controller, 5, tenant="b")
    controller.leave(ticket, 0.0)
    busy(controller, 1, tenant="a")


def test_tokens_a_minute_are_paid_for_when_they_are_known():
    controller = limited(tokens_per_minute=600)
    (ticket,) = busy(controller, 1, tenant="a", prompt_tokens=500, max_tokens=0)
    refused = controller.offer(Ticket(tenant="a", prompt_tokens=300, max_tokens=0), 0.0)
    assert refused.reason is Refusal.TENANT_TOKENS
    # 200 tokens are missing, and ten are added in a second.
    assert refused.retry_after == pytest.approx(20)
    ticket.generated = 100
    controller.leave(ticket, 0.0)
    assert controller.offer(Ticket(tenant="a", prompt_tokens=300, max_tokens=0), 29.0).retry_after == pytest.approx(1.0)
    assert controller.offer(Ticket(tenant="a", prompt_tokens=300, max_tokens=0), 30.1) is None


def every_policy():
    return [Unlimited(), FixedLimit(limit=100), LateGate(SLO(ttft=10.0), 100, None, 30.0)]


@pytest.mark.parametrize("policy", every_policy(), ids=lambda policy: policy.name)
def test_tokens_a_minute_count_what_an_answer_is_expected_to_take(policy):
    """A regression: with a fixed limit 60 of these ran at once, for up to 60,000 of 600 tokens."""
    table = TenantTable({"a": TenantLimits(tokens_per_minute=600)})
    controller = AdmissionController(policy, tenants=Tenants(table))
    taken = 0
    while controller.offer(Ticket(tenant="a", prompt_tokens=10, max_tokens=1000), 0.0) is None:
        taken += 1
    assert taken == 3


@pytest.mark.parametrize("policy", every_policy(), ids=lambda policy: policy.name)
def test_the_expected_tokens_of_an_answer_are_learned_and_bounded(policy):
    controller = AdmissionController(policy, tenants=Tenants(TenantTable()))
    for _ in range(200):
        (ticket,) = busy(controller, 1, max_tokens=1000)
        ticket.generated, ticket.complete = 20, True
        controller.leave(ticket, 0.0)
    learnt, bounded = busy(controller, 1, max_tokens=1000) + busy(controller, 1, max_tokens=5)
    assert 15 < learnt.expected_tokens < 40
    assert bounded.expected_tokens == 5


def test_each_policy_reserves_the_same_tokens_with_the_same_history():
    """Answers that have ended, and long ones that still run, count alike under each policy's name."""
    table = TenantTable({"a": TenantLimits(tokens_per_minute=6000)})
    reserved = {}
    for name in POLICIES:
        controller = build_admission(AdmissionConfig(policy=name, tenants=table), SLO(ttft=1000.0), max_num_seqs=64)
        controller.record(EngineSample(steps=1), 0.0)
        for ticket in busy(controller, 20, max_tokens=4000):
            controller.first_token(ticket, 0.0)
        for steps in range(2, 700):
            controller.record(EngineSample(steps=steps, busy_seconds=0.01 * steps), 0.01 * steps)
        for _ in range(40):
            (ticket,) = busy(controller, 1, now=7.0, max_tokens=1000)
            controller.first_token(ticket, 7.0)
            ticket.generated, ticket.complete = 20, True
            controller.leave(ticket, 7.0)
        tickets = [Ticket(tenant="a", prompt_tokens=10, max_tokens=1000) for _ in range(20)]
        reserved[name] = [ticket.reserved for ticket in tickets if controller.offer(ticket, 7.0) is None]
    assert reserved["fixed"] == reserved["unlimited"] == reserved["lategate"]
    # From complete answers alone it would be 42.
    assert len(reserved["fixed"]) > 5
    assert reserved["fixed"][0] > 400


def tell(teller, *listeners, now=0.0):
    tally = teller.tally()
    for listener in listeners:
        listener.served_elsewhere(tally, now)


def test_requests_that_are_open_elsewhere_count():
    here, there = limited(concurrency=2), limited(concurrency=2)
    busy(here, 1, tenant="a")
    (ticket,) = busy(there, 1, tenant="a")
    busy(there, 3, tenant="b")
    assert there.tally().open == {"a": 1}
    tell(there, here)
    assert here.offer(Ticket(tenant="a"), 0.0).reason is Refusal.TENANT_LIMIT
    # A repeated message does not count twice. When the request is over, its count is over too.
    tell(there, here)
    there.leave(ticket, 0.0)
    tell(there, here)
    busy(here, 1, tenant="a")


def test_tokens_that_are_taken_elsewhere_are_paid_for_here():
    here, there = limited(tokens_per_minute=600), limited(tokens_per_minute=600)
    tell(there, here)
    (ticket,) = busy(there, 1, tenant="a", prompt_tokens=500, max_tokens=0)
    busy(there, 1, tenant="b", prompt_tokens=500)
    for _ in range(2):
        # Counts once.
        tell(there, here)
    assert here.offer(Ticket(tenant="a", prompt_tokens=300, max_tokens=0), 0.0).retry_after == pytest.approx(20)
    # Tokens that are returned there are returned here, and the real cost is charged.
    ticket.generated = 100
    there.leave(ticket, 0.0)
    tell(there, here)
    assert here.offer(Ticket(tenant="a", prompt_tokens=300, max_tokens=0), 29.0).retry_after == pytest.approx(1.0)
    assert here.offer(Ticket(tenant="a", prompt_tokens=300, max_tokens=0), 30.1) is None


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 20), st.integers(1, 80), st.integers(0, 80)), max_size=60))
def test_two_controllers_that_exchange_usage_give_a_tenant_no_more_tokens_than_one(asked):
    """With an exchange after every request, two controllers admit exactly as many tokens as one."""
    pair, alone = (limited(tokens_per_minute=60), limited(tokens_per_minute=60)), limited(tokens_per_minute=60)
    for one in pair:
        one.tally()
    now = 0.0
    for which, pause, prompt, generated in asked:
        now += pause
        verdicts = []
        for controller in (pair[which], alone):
            ticket = Ticket(tenant="a", prompt_tokens=prompt)
            verdicts.append(controller.offer(ticket, now) is None)
            if verdicts[-1]:
                ticket.generated = generated
                controller.leave(ticket, now)
        tell(pair[which], pair[1 - which], now=now)
        assert verdicts[0] == verdicts[1]


def test_accounts_of_strangers_elsewhere_are_forgotten_when_they_are_even():
    controller = AdmissionController(Unlimited(), tenants=Tenants(TenantTable(default=TenantLimits(tokens_per_minute=600))))
    for number in range(5000):
        controller.served_elsewhere(UsageDelta(tokens={str(number): 100.0}), float(number))
    assert len(controller.tenants._accounts) < 3 * SPARE_ACCOUNTS


def test_one_that_never_ran_costs_no_tokens():
    controller = AdmissionController(FixedLimit(limit=1), tenants=Tenants(TenantTable({"a": TenantLimits(tokens_per_minute=600)})))
    busy(controller, 1)
    (waiting,) = busy(controller, 1, tenant="a", prompt_tokens=600)
    controller.leave(waiting, 0.0)
    busy(controller, 1, tenant="a", prompt_tokens=600)


def test_more_than_a_minute_s_worth_is_served_when_a_whole_minute_is_saved():
    controller = limited(tokens_per_minute=600)
    (ticket,) = busy(controller, 1, tenant="a", prompt_tokens=6000)
    controller.leave(ticket, 0.0)
    assert controller.offer(Ticket(tenant="a", prompt_tokens=1), 60.0).retry_after > 30


def test_a_table_may_refuse_unknown_tenants():
    table = TenantTable.parse('unknown = "refuse"\n[tenants.a]\nweight = 2')
    controller = AdmissionController(Unlimited(), tenants=Tenants(table))
    busy(controller, 1, tenant="a")
    refused = controller.offer(Ticket(tenant="b"), 0.0)
    assert refused.reason is Refusal.TENANT_UNKNOWN
    error = refused.error("b")
    assert isinstance(error, UnknownTenant)
    assert "'b'" in str(error)
    assert not isinstance(error, Overloaded)


def test_a_new_table_holds_from_the_next_request_on():
    controller = limited(concurrency=1)
    busy(controller, 1, tenant="a")
    controller.set_tenants(TenantTable({"a": TenantLimits(concurrency=2)}))
    busy(controller, 1, tenant="a")
    assert controller.offer(Ticket(tenant="a"), 0.0).reason is Refusal.TENANT_LIMIT


def test_accounts_of_strangers_are_forgotten_when_they_are_even():
    controller = AdmissionController(Unlimited(), tenants=Tenants(TenantTable(default=TenantLimits(tokens_per_minute=600))))
    for number in range(5000):
        (ticket,) = busy(controller, 1, tenant=str(number), prompt_tokens=100, now=float(number))
        controller.leave(ticket, float(number))
    assert len(controller.tenants._accounts) < 3 * SPARE_ACCOUNTS


def test_a_table_of_tenants():
    table = TenantTable.parse("[default]\nconcurrency = 4\n[tenants.alice]\nweight = 2.5\ntokens_per_minute = 60000")
    assert table.of("alice") == TenantLimits(weight=2.5, tokens_per_minute=60000)
    assert table.of("bob") == TenantLimits(concurrency=4)
    assert TenantTable.parse("").of("bob") == TenantLimits()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tenants = 3", "tenants"),
        ("[tenants]\nalice = 3", "tenants.alice"),
        ("[tenants.alice]\nweigth = 2", "weigth"),
        ("[tenants.alice]\nweight = 0", "tenants.alice.weight"),
        ("[tenants.alice]\nweight = nan", "tenants.alice.weight"),
        ("[tenants.alice]\nweight = true", "tenants.alice.weight"),
        ("[tenants.alice]\nconcurrency = 1.5", "tenants.alice.concurrency"),
        ("[default]\ntokens_per_minute = -1", "default.tokens_per_minute"),
        ('unknown = "perhaps"', "perhaps"),
        ('unknown = "refuse"\n[default]', "default"),
        ("limits = 1", "limits"),
        ("[tenants.alice", "TOML"),
    ],
)
def test_the_error_of_a_wrong_table_names_what_is_wrong(text, named):
    with pytest.raises(ConfigurationError, match=named):
        TenantTable.parse(text)


# Building a controller from an operator's settings


@pytest.mark.parametrize(
    ("config", "slo", "expected"),
    [
        (AdmissionConfig(), SLO(), (18, 72, 30.0)),
        (AdmissionConfig(max_running=4), SLO(), (4, 16, 30.0)),
        (AdmissionConfig(max_running=4, max_waiting=0, max_wait=5), SLO(ttft=1), (4, 0, 1)),
        (AdmissionConfig(max_running=4, max_wait=0.5), SLO(ttft=1), (4, 16, 0.5)),
        (AdmissionConfig(max_running=0), SLO(), (None, 0, 30.0)),
        (AdmissionConfig(), SLO(ttft=1), (16, 64, 30.0)),
    ],
)
def test_unset_limits_come_from_the_engine(config, slo, expected):
    controller: Any = build_admission(config, slo, max_num_seqs=16)
    assert (controller.policy.limit, controller.max_waiting, controller.policy.max_wait) == expected


def test_an_slo_makes_it_predict_and_a_limit_makes_it_count():
    assert isinstance(build_admission(AdmissionConfig(), SLO(tpot=0.05), 16).policy, LateGate)
    assert isinstance(build_admission(AdmissionConfig(max_running=8), SLO(tpot=0.05), 16).policy, FixedLimit)
    assert isinstance(build_admission(AdmissionConfig(), SLO(), 16).policy, FixedLimit)


ASKED = st.tuples(st.sampled_from("abcdef"), st.sampled_from([0.25, 1.0, 4.0]), st.floats(0, 8), st.sampled_from("abcdefg"))


@given(st.lists(ASKED, max_size=60))
def test_the_weights_of_demanding_tenants_are_those_of_the_last_seconds(moves):
    """Compare with a sum over all tenants, which new names in each request would make slow."""
    rate, now, asked = ServiceRate(), 0.0, {}
    for tenant, weight, passed, other in moves:
        now += passed
        rate.offered(tenant, 1.0, now, weight)
        asked[tenant] = now, weight
        recent = {name: weight for name, (at, weight) in asked.items() if at > now - 3 * ServiceRate.DEMAND_SECONDS}
        assert rate.demanding(other, 2.0, now) == pytest.approx(sum(({other: 2.0} | recent).values()))


# Effects that show later


def waiting(controller, count, now=0.0, **fields):
    tickets = [Ticket(**fields) for _ in range(count)]
    for ticket in tickets:
        assert controller.offer(ticket, now) is None
    return tickets


def test_all_started_requests_are_counted():
    controller = AdmissionController(FixedLimit(limit=2, max_wait=5), max_waiting=4)
    first, second, third = waiting(controller, 3)
    assert controller.statistics(0.0).admitted == 2
    controller.leave(first, 1.0)
    controller.leave(second, 1.0)
    assert third.state is TicketState.RUNNING
    assert controller.statistics(1.0).admitted == 3


def test_a_demotion_is_in_the_log():
    controller = AdmissionController(FixedLimit(limit=1, max_wait=5), max_waiting=4)
    waiting(controller, 1)
    (late,) = waiting(controller, 1, request_id="late", best_effort=True)
    assert controller.give_up(late, late.expires) == (None, [])
    assert [(one.verdict, one.constraint) for one in controller.explain("late")][-1] == ("relegated", Refusal.WAITED_TOO_LONG)


def test_time_without_an_engine_does_not_change_the_service_rate():
    def rate_after(away):
        controller = AdmissionController(FixedLimit(limit=1, max_wait=1000), max_waiting=100)
        running, *_ = waiting(controller, 60)
        now = 0.0
        for number in range(50):
            now += 0.1
            if number == 30 and away:
                controller.suspend(now)
                now += away
                controller.resume(now)
            (started,) = controller.leave(running, now)
            running = started
        return controller.statistics(now).drain_rate

    assert rate_after(60.0) == pytest.approx(rate_after(0.0), rel=0.05)


def test_saved_tokens_can_be_spent_only_once():
    tenants = Tenants(TenantTable(default=TenantLimits(tokens_per_minute=60)))
    controller = AdmissionController(Unlimited(), tenants=tenants)
    for now in (0.0, 60.0):
        assert controller.offer(Ticket(prompt_tokens=60, max_tokens=0), now) is None
    refused = controller.offer(Ticket(prompt_tokens=60, max_tokens=0), 61.0)
    assert refused.reason is Refusal.TENANT_TOKENS
