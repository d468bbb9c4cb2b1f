"""A manager's parts: the policy that it gets decides what runs, and wrong objects are named."""

import argparse
from functools import partial

import anyio
import pytest

from benchmarks.stand_ins.admission_policies import make as make_contender
from benchmarks.stand_ins.contender import Setup
from frontends.options.command_line import read
from frontends.options.definitions import make
from frontends.program.settings import ServerSettings
from llmserve import SLO, AdmissionConfig, ConfigurationError, EngineManager, FixedLimit, ManagerConfig, Unlimited
from llmserve.admission import POLICIES, AdmissionController, EngineSample, PolicyFigures, Terms, Ticket, TicketState
from llmserve.engines.simulated.engine import SimulatedEngine

pytestmark = pytest.mark.anyio


def constructed(admission, config=None):
    return EngineManager(SimulatedEngine(), config, admission=admission)


def opened(admission, config=None):
    return EngineManager.open(engine="simulated", config=config, admission=admission)


@pytest.mark.parametrize("make", [constructed, opened])
@pytest.mark.parametrize(
    ("admission", "limit", "max_waiting"),
    [(FixedLimit(2), 2, 8), (Unlimited(), None, 64), (AdmissionController(FixedLimit(3), max_waiting=5), 3, 5)],
)
async def test_a_policy_is_accepted(make, admission, limit, max_waiting):
    async with make(admission) as manager:
        assert (await manager.generate("hello", max_tokens=2)).token_ids
        statistics = manager.statistics().admission
        assert (statistics.limit, statistics.max_waiting) == (limit, max_waiting)


@pytest.mark.parametrize("make", [constructed, opened])
@pytest.mark.parametrize("admission", [2, FixedLimit, AdmissionConfig(max_running=2), object()])
def test_anything_else_is_a_type_error_that_names_what_is_accepted(make, admission):
    with pytest.raises(
        TypeError, match=r"FixedLimit\(8\) or Unlimited\(\), a policy\'s name, an object with the methods of Admission, or None, not"
    ):
        make(admission)


def test_two_limits_are_refused():
    with pytest.raises(ConfigurationError, match="max_running"):
        constructed(FixedLimit(2), ManagerConfig(admission=AdmissionConfig(max_running=4)))


@pytest.mark.parametrize("engine", ["bundled", None, SimulatedEngine])
def test_a_wrong_engine_is_a_type_error_that_names_open(engine):
    """A user who has seen `open` first tries a model's name or a class."""
    with pytest.raises(TypeError, match=r"engine must be an engine, such as SimulatedEngine\(\), not .*EngineManager.open\(\)"):
        EngineManager(engine)


@pytest.mark.parametrize("config", [{"drain_timeout": 1}, AdmissionConfig(), ManagerConfig])
def test_a_wrong_config_is_a_type_error(config):
    with pytest.raises(TypeError, match="config must be a ManagerConfig or None, not"):
        EngineManager(SimulatedEngine(), config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"admission": FixedLimit(2)}, r"admission must be made with AdmissionConfig\(...\), not"),
        ({"slo": 0.5}, r"slo must be made with SLO\(...\), not 0.5"),
        ({"restart": None}, r"restart must be made with RestartConfig\(...\), not None"),
    ],
)
def test_a_part_of_a_config_of_another_type_is_named(fields, words):
    with pytest.raises(ConfigurationError, match=words):
        ManagerConfig(**fields)


class Slots:
    """A policy that only counts, without a base class or a longest wait."""

    name, limit = "slots", 2

    def __init__(self):
        self.running = 0

    def holds(self, ticket, now):
        return "slots" if self.running >= self.limit else None

    def started(self, ticket, now):
        self.running += 1

    def left(self, ticket, now):
        self.running -= 1


class Paced(Slots):
    """A policy that predicts: it serves what it can in a second, at the speed of the engine's steps."""

    name = "paced"

    def __init__(self):
        super().__init__()
        self.steps, self.first_tokens = EngineSample(), 0

    def terms(self, ticket, queue, now):
        seconds = ticket.expected_tokens * (self.figures().step_seconds or 0.0)
        return Terms(ticket.prompt_tokens + ticket.expected_tokens, now + 1.0, seconds)

    def patience(self, ticket, queue):
        return 1.0

    def overdue(self, ticket, queue, now):
        return None

    def first_token(self, ticket, now):
        self.first_tokens += 1

    def record(self, sample, now):
        self.steps = sample

    def figures(self):
        return PolicyFigures(step_seconds=self.steps.busy_seconds / self.steps.steps if self.steps.steps else None)


@pytest.mark.parametrize("policy", [Slots, Paced])
async def test_another_policy_is_one_class_and_one_row(monkeypatch, policy):
    made: list[Slots] = []

    def make_policy(setup):
        made.append(policy())
        return made[0]

    monkeypatch.setitem(POLICIES, policy.name, make_policy)
    config = ManagerConfig(slo=SLO(ttft=5.0), admission=AdmissionConfig(policy=policy.name))
    async with EngineManager.open(engine="simulated", config=config) as manager:
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(partial(manager.generate, "hello", max_tokens=20, request_id=str(number)))
        assert isinstance(manager.admission, AdmissionController)
        statistics = manager.admission.statistics(0.0)
        assert (statistics.policy, statistics.limit, statistics.admitted) == (policy.name, 2, 6)
        assert statistics.held["slots"] > 0
        assert {decision.verdict for decision in manager.admission.log.latest(100)} == {"waits", "started"}
        assert made[0].running == 0
        if isinstance(made[0], Paced):
            assert made[0].first_tokens == 6
            assert manager.admission.log.latest(1)[0].step_seconds > 0


async def test_another_policy_is_selected_by_name(monkeypatch):
    monkeypatch.setitem(POLICIES, "slots", lambda setup: Slots())
    settings = make(ServerSettings, read(argparse.ArgumentParser(), ServerSettings, ["--policy", "slots"]))
    assert settings.manager_config(settings.open_access()).admission.policy == "slots"
    async with opened("slots") as manager:
        assert manager.statistics().admission.policy == "slots"
    assert make_contender("slots", Setup(slo=SLO(), max_num_seqs=8)).statistics(0.0).policy == "slots"


def test_a_policy_without_a_longest_wait_has_the_controller_s():
    controller = AdmissionController(Slots(), max_wait=7.0)
    tickets = [Ticket() for _ in range(3)]
    for ticket in tickets:
        assert controller.offer(ticket, 1.0) is None
    assert tickets[2].state is TicketState.WAITING
    assert tickets[2].expires == 8.0


def test_a_policy_that_predicts_in_part_is_refused():
    class Half(Slots):
        def terms(self, ticket, queue, now):
            return Terms(1.0, now)

    with pytest.raises(TypeError, match="the policy slots predicts, but has no patience, overdue, first_token, record, figures"):
        AdmissionController(Half())


@pytest.mark.parametrize(
    ("name", "slo", "max_running", "words"),
    [
        ("lategate", None, None, "needs an SLO"),
        ("lategate", 1.0, 4, "remove max_running"),
        ("fixed", None, 0, "max_running above 0"),
        ("unlimited", None, 4, "remove max_running"),
        ("fair", None, None, "unknown policy 'fair'; choose from lategate, fixed, unlimited"),
    ],
)
async def test_settings_that_do_not_fit_the_named_policy_are_refused(name, slo, max_running, words):
    config = ManagerConfig(slo=SLO(ttft=slo), admission=AdmissionConfig(max_running=max_running))
    with pytest.raises(ConfigurationError, match=words):
        async with opened(name, config):
            pass


@pytest.mark.parametrize("name", ["fixed", "unlimited"])
async def test_a_named_policy_that_counts_goes_with_an_slo(name):
    async with opened(name, ManagerConfig(slo=SLO(ttft=1.0))) as manager:
        assert manager.statistics().admission.policy == name


def test_a_policy_and_a_policy_s_name_are_refused():
    with pytest.raises(ConfigurationError, match="remove policy"):
        constructed(FixedLimit(2), ManagerConfig(admission=AdmissionConfig(policy="fixed")))
