"""Admission for several engines: a hypothesis state machine, prefixes of prompts, the choice of the engine."""

import heapq
import itertools
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmserve import SLO
from llmserve.admission import (
    AdmissionController,
    EngineSample,
    FixedLimit,
    LateGate,
    Refusal,
    Ticket,
    TicketState,
    Unlimited,
)
from llmserve.admission.pool.policy import FEW, PoolPolicy
from llmserve.admission.pool.prefixes import ENDS, STEP, UNKNOWN_CACHE, PrefixIndex, bits, prefix_keys
from llmserve.admission.pool.router import (
    ANSWER,
    BESIDE,
    CANDIDATES,
    DELAYED,
    ENOUGH,
    LEAST,
    PROMPT_TOKEN,
    SEQUENCE,
    STAY,
    USUAL,
    Router,
    Slope,
)

CACHE = 6000
# Prompts of which some begin alike.
PROMPTS = [(group,) * 400 + (number,) * 300 for group in range(3) for number in range(2)]
PREFIXES = [prefix_keys(prompt) for prompt in PROMPTS]


class Starts:
    """Checks each start but a move: the engine's own policy would not have held the ticket."""

    moving = False

    def check(self, policy, ticket, now):
        assert self.moving or policy.holds(ticket, now) is None


starts = Starts()


class CheckedFixed(FixedLimit):
    def started(self, ticket, now):
        starts.check(self, ticket, now)
        super().started(ticket, now)


class CheckedLateGate(LateGate):
    def started(self, ticket, now):
        starts.check(self, ticket, now)
        super().started(ticket, now)


def policies(name, engines):
    if name == "fixed":
        return [CheckedFixed(1 + engine % 3, max_wait=5) for engine in range(engines)]
    return [CheckedLateGate(SLO(ttft=2.0, tpot=0.05), 3, 600) for _ in range(engines)]


class PoolMachine(RuleBasedStateMachine):
    """A pool of engines, of which any may be suspended. The model holds all open tickets."""

    @initialize(engines=st.integers(1, 5), name=st.sampled_from(["fixed", "lategate"]))
    def build(self, engines, name):
        self.policies = policies(name, engines)
        self.pool = PoolPolicy(self.policies)
        self.controller = AdmissionController(self.pool, max_waiting=6)
        self.now = 0.0
        self.up = set(range(engines))
        self.steps = [0] * engines
        self.running, self.waiting, self.ended = [], [], set()

    @property
    def engines(self):
        return range(len(self.policies))

    def over(self, tickets):
        """Check the tickets that stop waiting: each is reported once."""
        for ticket in tickets:
            assert ticket not in self.ended
            self.waiting.remove(ticket)
            if ticket.state is TicketState.RUNNING:
                assert ticket.engine in self.up
                self.running.append(ticket)
            else:
                assert ticket.refused.reason in (Refusal.DISPLACED, Refusal.WAITED_TOO_LONG)
                assert self.up or ticket.refused.reason is Refusal.DISPLACED
                self.ended.add(ticket)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds):
        self.now += seconds
        self.over(self.controller.pump(self.now))

    @rule(
        tenant=st.sampled_from("abc"),
        which=st.integers(0, 5),
        tokens=st.integers(1, 700),
        best_effort=st.booleans(),
        most=st.integers(0, 90),
    )
    def offer(self, tenant, which, tokens, best_effort, most):
        ticket = Ticket(tenant=tenant, best_effort=best_effort)
        if self.controller.screen(ticket, self.now) is not None:
            return
        ticket.prompt_tokens, ticket.max_tokens, ticket.prefix = tokens, most, prefix_keys(PROMPTS[which][:tokens])
        if self.controller.offer(ticket, self.now) is not None:
            assert ticket.state is TicketState.DONE
        elif ticket.state is TicketState.RUNNING:
            assert ticket.engine in self.up
            self.running.append(ticket)
        else:
            self.waiting.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_first_token_comes(self, data):
        ticket = data.draw(st.sampled_from(self.running))
        self.over(self.controller.first_token(ticket, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), complete=st.booleans(), generated=st.integers(0, 90))
    def a_running_ticket_leaves(self, data, complete, generated):
        ticket = data.draw(st.sampled_from(self.running))
        ticket.complete, ticket.generated = complete, generated
        self.running.remove(ticket)
        self.ended.add(ticket)
        self.over(self.controller.leave(ticket, self.now))
        assert self.controller.leave(ticket, self.now) == []

    @precondition(lambda self: any(ticket.state is TicketState.WAITING for ticket in self.waiting))
    @rule(data=st.data(), patient=st.booleans())
    def a_waiting_ticket_leaves_or_gives_up(self, data, patient):
        ticket = data.draw(st.sampled_from([ticket for ticket in self.waiting if ticket.state is TicketState.WAITING]))
        if patient:
            self.waiting.remove(ticket)
            self.ended.add(ticket)
            self.over(self.controller.leave(ticket, self.now))
            return
        self.now = max(self.now, ticket.expires)
        refused, over = self.controller.give_up(ticket, self.now)
        assert self.up or (refused, over) == (None, [])
        if refused is not None:
            self.waiting.remove(ticket)
            self.ended.add(ticket)
        self.over(over)

    @rule(data=st.data(), moves=st.booleans())
    def an_engine_dies(self, data, moves):
        engine = data.draw(st.sampled_from(self.engines))
        self.controller.suspend(self.now, engine)
        self.up.discard(engine)
        if moves:
            self.move(engine)

    @rule(data=st.data(), emptied=st.booleans())
    def an_engine_returns(self, data, emptied):
        engine = data.draw(st.sampled_from(self.engines))
        self.up.add(engine)
        if emptied:
            self.steps[engine] = 0
        self.over(self.controller.resume(self.now, engine, emptied=emptied))

    @rule(data=st.data())
    def tickets_of_an_engine_move(self, data):
        self.move(data.draw(st.sampled_from(self.engines)))

    def move(self, engine):
        starts.moving = True
        try:
            for ticket in [ticket for ticket in self.running if ticket.engine == engine]:
                self.controller.move(ticket, self.now)
                # A ticket moves only if its engine is down and another one is up.
                assert ticket.engine in self.up or not self.up
                assert ticket.engine == engine or engine not in self.up
        finally:
            starts.moving = False

    @rule(data=st.data(), steps=st.integers(1, 40), seconds=st.floats(0.001, 1), kv_usage=st.floats(0, 1))
    def an_engine_records_steps(self, data, steps, seconds, kv_usage):
        engine = data.draw(st.sampled_from(self.engines))
        self.steps[engine] += steps
        here = sum(ticket.engine == engine for ticket in self.running)
        sample = EngineSample(
            engine=engine,
            steps=self.steps[engine],
            busy_seconds=seconds * self.steps[engine],
            kv_usage=kv_usage,
            kv_tokens=CACHE,
            running=here,
        )
        self.now += seconds
        self.over(self.controller.record(sample, self.now))

    @invariant()
    def no_ticket_waits_that_an_engine_would_let_start(self):
        line = self.controller._line
        if line.length:
            assert all(self.policies[engine].holds(line.head(), self.now) is not None for engine in self.up)

    @invariant()
    def it_agrees_with_the_model(self):
        statistics = self.controller.statistics(self.now)
        waiting = [ticket for ticket in self.waiting if ticket.state is TicketState.WAITING]
        assert (statistics.running, statistics.waiting) == (len(self.running), len(waiting))
        for engine, load in enumerate(self.pool.router.loads):
            assert load.running == sum(ticket.engine == engine for ticket in self.running)
            assert load.pending >= 0
        check_index(self.pool.router.prefixes)

    def teardown(self):
        if not hasattr(self, "policies"):
            return
        for ticket in [*self.waiting, *self.running]:
            self.controller.leave(ticket, self.now)
        assert (self.controller.statistics(self.now).running, self.controller.statistics(self.now).waiting) == (0, 0)
        router = self.pool.router
        assert [(load.running, load.pending) for load in router.loads] == [(0, 0)] * len(self.policies)
        assert not router._placed
        assert not any(self.controller.answers._running.values())
        for policy in self.policies:
            if isinstance(policy, FixedLimit):
                assert policy._running == 0
            else:
                assert (policy._live, policy.cache.committed, policy._pending) == ({}, 0, 0)
        for engine in self.engines:
            router.prefixes.clear(engine)
        check_index(router.prefixes)
        assert (router.prefixes._holders, router.prefixes._tokens) == ({}, [0] * len(self.policies))


def check_index(index):
    """Check that the index's sums and its two directions agree, and that no cache is overfull."""
    for engine, entries in enumerate(index._entries):
        assert index._tokens[engine] == sum(entries.values()) <= UNKNOWN_CACHE
        held = {key for key, holders in index._holders.items() if holders >> engine & 1}
        assert held == {key for key in entries if isinstance(key, int)}
    for prefix in PREFIXES:
        # An engine that has a beginning has the shorter ones too.
        assert all(longer & ~shorter == 0 for shorter, longer in itertools.pairwise(index._holders.get(key, 0) for key in prefix))


TestPool = PoolMachine.TestCase


# The beginnings of prompts


@given(st.lists(st.integers(0, 3), max_size=800), st.lists(st.integers(0, 3), max_size=400), st.sampled_from(["", "a", "\ud800"]))
def test_a_prompt_that_begins_with_another_has_its_keys(beginning, more, salt):
    short, long = prefix_keys(beginning, salt), prefix_keys(beginning + more, salt)
    assert long[: len(short)] == short
    assert len(short) == sum(ENDS[index] <= len(beginning) for index in range(10))


@given(st.lists(st.integers(0, 3), min_size=STEP, max_size=600), st.integers(0, 599), st.text(max_size=3), st.text(max_size=3))
def test_another_token_or_another_salt_changes_all_keys_from_there_on(prompt, place, salt, other):
    place %= len(prompt)
    changed = [*prompt[:place], 9, *prompt[place + 1 :]]
    before = place // STEP
    keys, others = prefix_keys(prompt, salt), prefix_keys(changed, salt)
    assert keys[:before] == others[:before]
    assert not set(keys[before:]) & set(others[before:])
    assert salt == other or not set(keys) & set(prefix_keys(prompt, other))


@pytest.mark.parametrize(("tokens", "most"), [(127, 0), (128, 1), (2048, 16), (65_536, 56), (1_000_000, 100)])
def test_the_number_of_keys_is_bounded(tokens, most):
    keys = prefix_keys(range(tokens))
    assert len(keys) <= most
    # At most an eighth of a prompt, or less than a step, has no key.
    assert tokens - (ENDS[len(keys) - 1] if keys else 0) <= max(STEP - 1, tokens / 8)


def test_keys_are_the_same_in_every_process():
    code = "from llmserve.admission.pool.prefixes import prefix_keys; print(*prefix_keys(list(range(700)), 'tenant'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {" ".join(map(str, prefix_keys(range(700), "tenant"))) + "\n"}


def test_an_index_knows_the_longest_beginning_of_each_engine():
    index = PrefixIndex(3)
    long, branch = prefix_keys(range(5 * STEP)), prefix_keys([*range(2 * STEP), *range(10**4, 10**4 + 3 * STEP)])
    index.remember(0, long, 0)
    index.remember(2, branch, 0)
    assert index.cached(long) == [(0b100, 2 * STEP), (0b001, 5 * STEP)]
    assert index.cached(branch) == [(0b001, 2 * STEP), (0b100, 5 * STEP)]
    assert index.cached(long[:1]) == [(0b101, STEP)]
    assert index.cached(prefix_keys(range(5, 5 * STEP))) == index.cached(()) == []
    index.clear(0)
    assert index.cached(long) == [(0b100, 2 * STEP)]


def test_a_full_index_forgets_what_was_used_longest_ago_and_the_ends_of_prompts_first():
    index = PrefixIndex(1)
    index.capacity[0] = 8 * STEP
    prompts = [prefix_keys([number] * 3 * STEP) for number in range(3)]
    for keys in (prompts[0], prompts[1], prompts[0], prompts[2]):
        index.remember(0, keys, 0)
    assert index.cached(prompts[0]) == [(1, 3 * STEP)]
    assert index.cached(prompts[1]) == [(1, 2 * STEP)]
    # What only one prompt has counts too: its end and its answer.
    index.remember(0, (), 5 * STEP)
    assert index._tokens[0] <= 8 * STEP
    assert index.cached(prompts[1]) == []
    check_index(index)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 500)), max_size=60), st.integers(0, 2000))
def test_an_index_stays_within_the_size_of_the_cache(prompts, capacity):
    index = PrefixIndex(3)
    index.capacity = [capacity] * 3
    for engine, which, rest in prompts:
        index.remember(engine, PREFIXES[which], rest)
        assert max(index._tokens) <= capacity
    check_index(index)


# The choice of the engine


def pool_of(policies):
    pool = PoolPolicy(policies)
    return AdmissionController(pool), pool


def offered(controller, now=0.0, **fields):
    ticket = Ticket(**fields)
    assert controller.offer(ticket, now) is None
    return ticket


class Later:
    """Starts further tickets only from second 5 on: its answer changes without any event."""

    name, limit = "later", None

    def __init__(self):
        self.running = 0

    def holds(self, ticket, now):
        return "early" if self.running and now < 5 else None

    def started(self, ticket, now):
        self.running += 1

    def left(self, ticket, now):
        self.running -= 1


def test_a_policy_that_depends_on_the_time_is_asked_again():
    """A regression: a held ticket waited until a ticket left."""
    controller, _ = pool_of([Later(), Later()])
    first, second, third = (offered(controller) for _ in range(3))
    assert {first.engine, second.engine} == {0, 1}
    assert third.state is TicketState.WAITING
    assert controller.pump(4.9) == []
    assert controller.pump(5.0) == [third]


class Small(Later):
    """Starts only small tickets beside another one."""

    name, sized = "small", ("size",)

    def holds(self, ticket, now):
        return "size" if self.running and max(ticket.prompt_tokens, ticket.expected_tokens) > 100 else None


@pytest.mark.parametrize("large", [{"prompt_tokens": 200, "max_tokens": 5}, {"prompt_tokens": 5, "max_tokens": 140}])
def test_an_engine_that_holds_a_large_ticket_is_asked_about_a_smaller_one(large):
    controller, _ = pool_of([Small(), Small()])
    for _ in range(2):
        offered(controller)
    assert offered(controller, **large).state is TicketState.WAITING
    assert offered(controller, priority=-1, prompt_tokens=50, max_tokens=5).state is TicketState.RUNNING


def test_a_ticket_s_prompt_counts_although_it_was_compared_before_it_was_known():
    """A regression: without an answer, the figures from before the tokenisation were used."""
    controller, pool = pool_of([LateGate(SLO(ttft=1.0), 4, None), LateGate(SLO(ttft=1.0), 4, None)])
    keys = prefix_keys(range(640))
    pool.router.prefixes.remember(1, keys, 0)
    ticket = Ticket(max_tokens=0)
    pool.patience(ticket, controller.forecast.state("", 0.0))
    ticket.prompt_tokens, ticket.prefix = 640, keys
    assert controller.offer(ticket, 0.0) is None
    assert ticket.engine == 1


def test_a_prompt_goes_where_its_beginning_is_and_elsewhere_when_many_wait_there():
    controller, _ = pool_of([Unlimited() for _ in range(3)])
    keys = prefix_keys(range(2048))
    home = offered(controller, prompt_tokens=2048, prefix=keys).engine
    assert [offered(controller, prompt_tokens=2100, prefix=keys).engine for _ in range(3)] == [home] * 3
    # Prompts of other conversations find the engines with the least work.
    assert {offered(controller, prompt_tokens=4096).engine for _ in range(2)} == {0, 1, 2} - {home}
    # What is not cached of these prompts keeps an engine busier than to compute the beginning again.
    assert {offered(controller, prompt_tokens=4096, prefix=keys).engine for _ in range(20)} == {0, 1, 2}


def test_a_ticket_stays_at_its_home_unless_that_costs_a_tenth_more_than_elsewhere():
    controller, pool = pool_of([Unlimited(), Unlimited()])
    at_home = [offered(controller, prompt_tokens=128, max_tokens=128, home=number % 2) for number in range(40)]
    assert [ticket.engine for ticket in at_home] == [0, 1] * 20
    more = [offered(controller, prompt_tokens=128, max_tokens=128, home=0) for _ in range(40)]
    there, here = pool.router.loads
    assert there.running > here.running > 20
    usual = 128, ANSWER * more[-1].expected_tokens
    assert there.cost(*usual) == pytest.approx((1 + STAY) * here.cost(*usual), rel=0.1)


def test_a_ticket_leaves_its_home_for_an_engine_that_has_its_prompt():
    controller, _ = pool_of([Unlimited(), Unlimited()])
    keys = prefix_keys(range(4096))
    assert offered(controller, prompt_tokens=4096, prefix=keys, home=1).engine == 1
    assert offered(controller, prompt_tokens=4100, prefix=keys, home=0).engine == 1
    assert offered(controller, prompt_tokens=4100, home=0).engine == 0


def test_a_home_that_takes_no_tickets_is_left():
    controller, _ = pool_of([Unlimited(), Unlimited()])
    controller.suspend(0.0, 1)
    assert offered(controller, prompt_tokens=128, home=1).engine == 0


def serve(slow, arrivals, interval):
    """Serve on two engines that compute one prompt after another, the second `slow` times slower."""
    controller, _ = pool_of([Unlimited(), Unlimited()])
    free, events, counts, now = [0.0, 0.0], [], [0, 0], 0.0
    for number in range(arrivals):
        now += interval
        while events and events[0][0] <= now:
            at, _, ticket = heapq.heappop(events)
            if ticket.generated:
                ticket.complete = True
                controller.leave(ticket, at)
            else:
                controller.first_token(ticket, at)
                ticket.generated = 10
                heapq.heappush(events, (at + 0.01 * (slow if ticket.engine else 1), id(ticket), ticket))
        ticket = offered(controller, now, prompt_tokens=1000)
        if number > arrivals / 4:
            counts[ticket.engine] += 1
        free[ticket.engine] = max(free[ticket.engine], now) + 0.02 * (slow if ticket.engine else 1)
        heapq.heappush(events, (free[ticket.engine], id(ticket), ticket))
    return counts


@pytest.mark.parametrize("slow", [1, 2, 4])
def test_work_goes_to_engines_in_proportion_to_their_speed(slow):
    """At what both carry together, neither engine falls behind the other."""
    fast, behind = serve(slow, 2000, 0.02 / (1 + 1 / slow))
    assert fast / behind == pytest.approx(slow, rel=0.1)


LOADS = st.tuples(st.integers(0, 3), st.integers(0, 5000), st.sampled_from([1e-5, 2e-5, 8e-5]))


@given(st.lists(LOADS, min_size=1, max_size=CANDIDATES), st.data())
def test_the_chosen_engine_is_the_cheapest_of_those_that_are_asked(loads, data):
    router = Router(len(loads))
    for load, (running, pending, seconds) in zip(router.loads, loads, strict=True):
        load.running, load.pending, load.prefills.factor = running, pending, seconds / PROMPT_TOKEN
    seconds_of = [PROMPT_TOKEN * load.prefills.factor for load in router.loads]
    for engine in data.draw(st.lists(st.sampled_from(range(len(loads))), max_size=4)):
        router.prefixes.remember(engine, data.draw(st.sampled_from(PREFIXES)), 0)
    ticket = Ticket(prompt_tokens=700, prefix=data.draw(st.sampled_from(PREFIXES)))
    ticket.expected_tokens = data.draw(st.floats(0, 1000))
    among = data.draw(st.integers(1, (1 << len(loads)) - 1))
    best = router.best(ticket, among)
    others = DELAYED * sum(seconds_of) / len(loads)

    def cost(engine):
        (running, pending, _), seconds, cached = loads[engine], seconds_of[engine], router.cached(ticket, engine)
        return (
            seconds * (pending + 700 - cached) + ANSWER * ticket.expected_tokens * SEQUENCE * (1 + (1 + BESIDE) * running) - others * cached
        )

    assert among >> best & 1
    assert len(loads) == 1 or cost(best) == pytest.approx(min(map(cost, bits(among))))


@pytest.mark.parametrize("slow", ["prefills", "decodes"])
def test_among_many_engines_the_usual_ticket_shows_which_are_fast(slow):
    """Three candidates are compared; they are not the idle ones, but those that are soon done."""
    router = Router(8)
    for load in router.loads[:7]:
        getattr(load, slow).factor *= 10
    router.loads[7].pending = 100
    for number in range(USUAL):
        ticket = Ticket(prompt_tokens=5000)
        ticket.expected_tokens = 500
        router.started(ticket, number % 7)
        router.left(ticket, number % 7, 1.0)
    router.started(last := Ticket(), 7)
    ticket = Ticket(prompt_tokens=5000)
    ticket.expected_tokens = 500
    assert router.best(ticket, 0xFF) == 7
    router.left(last, 7, 1.0)


@pytest.mark.parametrize(("slots", "engines"), [(64, [64, 64]), (None, [65, 63])])
def test_no_ticket_waits_at_its_home_while_another_engine_has_a_free_slot(slots, engines):
    """A regression: with 2,048 streams on two engines of 1,024, some waited seconds for a slot at home."""
    router = Router(2, slots)
    for number in range(128):
        ticket = Ticket(prompt_tokens=128, home=number % 2 if number < 126 else 0)
        ticket.expected_tokens = 128
        router.started(ticket, router.best(ticket, 0b11))
    assert [load.running for load in router.loads] == engines


@pytest.mark.parametrize("last", [1, 10_000])
def test_the_times_of_an_engine_are_learned(last):
    """A regression: a short prompt at the time of a fit made each token seem a hundred times as slow."""
    slope = Slope(1.0)
    for amount in [*range(1000, 1000 * 2 * ENOUGH, 1000), last]:
        slope.add(amount, 0.05 + 1e-5 * amount)
    assert (slope.base, slope.seconds) == pytest.approx((0.05, 1e-5), rel=0.01)


def test_an_engine_that_has_all_prompts_cached_does_not_seem_slow():
    """A regression: its time for one token was divided by that token."""
    controller, pool = pool_of([Unlimited(), Unlimited()])
    keys = prefix_keys(range(640))
    pool.router.prefixes.remember(0, keys, 640)
    for number in range(2 * ENOUGH):
        ticket = offered(controller, float(number), prompt_tokens=640, prefix=keys)
        controller.first_token(ticket, number + 0.01)
        controller.leave(ticket, number + 0.5)
    assert pool.router.loads[0].prefill.seconds < 2e-5


def test_samples_that_hardly_differ_still_give_a_slope():
    slope = Slope(1.0)
    for _ in range(2 * ENOUGH):
        slope.add(1000, 2.0)
    assert slope.seconds == LEAST * 2.0 / 1000


@pytest.mark.parametrize("emptied", [False, True])
def test_a_new_process_has_an_empty_cache(emptied):
    controller, pool = pool_of([Unlimited(), Unlimited()])
    keys = prefix_keys(range(640))
    ticket = offered(controller, prompt_tokens=640, prefix=keys)
    controller.suspend(1.0, ticket.engine)
    other = Ticket(prompt_tokens=640, prefix=keys)
    assert pool.router.cached(other, ticket.engine) == 640
    controller.resume(2.0, ticket.engine, emptied=emptied)
    assert pool.router.cached(other, ticket.engine) == (0 if emptied else 640)


def test_a_pool_adopts_new_limits():
    controller, _ = pool_of([FixedLimit(1), FixedLimit(1)])
    tickets = [offered(controller) for _ in range(5)]
    other, _ = pool_of([FixedLimit(2), FixedLimit(2)])
    assert controller.adopt(other, 1.0) == tickets[2:4]
    assert controller.statistics(1.0).limit == 4


def test_the_limit_is_that_of_the_engines_that_take_tickets():
    controller, _ = pool_of([FixedLimit(1), FixedLimit(2)])
    controller.suspend(0.0, 0)
    assert controller.statistics(0.0).limit == 2
    assert [offered(controller).state for _ in range(3)] == [TicketState.RUNNING] * 2 + [TicketState.WAITING]


def test_a_dead_engine_s_ticket_moves_beyond_the_limit_and_its_first_token_counts_again():
    controller, pool = pool_of([FixedLimit(1), FixedLimit(1)])
    first, second = offered(controller, prompt_tokens=200), offered(controller, prompt_tokens=200)
    controller.first_token(first, 1.0)
    controller.suspend(2.0, first.engine)
    controller.move(first, 2.0)
    assert first.engine == second.engine
    assert (first.granted, pool.router.loads[second.engine].pending) == (2.0, 400)
    controller.first_token(first, 3.0)
    assert pool.router.loads[second.engine].pending == 200
    waiting = offered(controller, 3.0)
    assert controller.leave(first, 4.0) == []
    assert controller.leave(second, 4.0) == [waiting]


# Which ticket starts on a free engine


def full_pool(*prompts):
    """Return a pool of two engines that are full and have one prompt's beginning each, and their tickets."""
    controller, _ = pool_of([FixedLimit(1), FixedLimit(1)])
    return controller, [offered(controller, prompt_tokens=640, prefix=prefix_keys(prompt)) for prompt in prompts]


BOOKS = [list(range(1000 * number, 1000 * number + 640)) for number in range(3)]


def test_a_free_engine_takes_the_first_ticket_whose_beginning_it_has():
    controller, running = full_pool(BOOKS[0], BOOKS[1])
    new, other, same = (offered(controller, prompt_tokens=640, prefix=prefix_keys(BOOKS[number])) for number in (2, 1, 0))
    assert controller.leave(running[0], 1.0) == [same]
    assert same.engine == running[0].engine
    assert controller.leave(running[1], 1.0) == [other]
    assert controller.leave(same, 2.0) == [new]


def test_a_ticket_is_overtaken_by_few_and_by_no_other_tenant():
    controller, running = full_pool(BOOKS[0], BOOKS[1])
    head = offered(controller, tenant="a", prompt_tokens=640, prefix=prefix_keys(BOOKS[2]))
    foreign = offered(controller, tenant="b", prompt_tokens=640, prefix=prefix_keys(BOOKS[0]))
    assert controller.leave(running[0], 1.0) == [head]
    assert controller.leave(running[1], 1.0) == [foreign]
    controller, running = full_pool(BOOKS[0], BOOKS[1])
    head = offered(controller, prompt_tokens=640, prefix=prefix_keys(BOOKS[2]))
    last = running[0]
    for overtakes in range(20):
        offered(controller, prompt_tokens=640, prefix=prefix_keys(BOOKS[0]))
        (last,) = controller.leave(last, float(overtakes))
        if last is head:
            break
    assert (last, overtakes, head.overtaken) == (head, FEW, FEW)


def test_a_ticket_whose_patience_has_ended_overtakes_none():
    """It is refused when it is at the head."""
    controller, running = full_pool(BOOKS[0], BOOKS[1])
    head, same = (offered(controller, prompt_tokens=640, prefix=prefix_keys(BOOKS[number])) for number in (2, 0))
    head.expires, same.expires = 10.0, 1.0
    assert controller.leave(running[0], 2.0) == [head, same]
    assert head.state is TicketState.RUNNING
    assert same.refused.reason is Refusal.WAITED_TOO_LONG


def test_lategate_counts_only_the_prompt_tokens_that_an_engine_must_compute():
    controller, _ = pool_of([LateGate(SLO(ttft=100.0), 8, 1000), LateGate(SLO(ttft=100.0), 8, 1000)])
    prefix = prefix_keys(range(2048))
    tickets = [offered(controller, prompt_tokens=2048, prefix=prefix) for _ in range(4)]
    # The first prompt closes its engine for a step; the next one goes to the other engine.
    assert [ticket.state for ticket in tickets] == [TicketState.RUNNING] * 2 + [TicketState.WAITING] * 2
    assert controller.first_token(tickets[0], 1.0) == tickets[2:]
    assert {ticket.engine for ticket in tickets[2:]} == {tickets[0].engine}
    for policy in controller.policy.members:
        assert policy.policy._pending <= 2048
    for ticket in tickets:
        controller.leave(ticket, 2.0)
    assert [member.policy._pending for member in controller.policy.members] == [0, 0]
