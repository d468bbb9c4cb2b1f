"""A manager's parts: the policy that it gets decides what runs, and wrong objects are named."""

import argparse

import pytest

from frontends.program.options import add_options, manager_config
from llmserve import SLO, AdmissionConfig, ConfigurationError, EngineManager, FixedLimit, ManagerConfig, Unlimited
from llmserve.admission import POLICIES, AdmissionController, LateGate
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


class Generous(LateGate):
    """A second policy that predicts: it refuses no request for its predicted wait."""

    name = "generous"

    def patience(self, ticket, queue):
        return 1e6


async def test_a_second_predictive_policy_is_one_class_and_one_row(monkeypatch):
    monkeypatch.setitem(POLICIES, "generous", lambda setup: Generous(setup.slo, setup.max_num_seqs, setup.max_num_batched_tokens))
    config = ManagerConfig(slo=SLO(ttft=1.0))
    async with opened("generous", config) as manager:
        assert (await manager.generate("hello", max_tokens=2)).token_ids
        assert manager.statistics().admission.policy == "generous"
    parser = argparse.ArgumentParser()
    add_options(parser)
    given = parser.parse_args(["--policy", "generous", "--slo-ttft", "1"])
    assert manager_config(given).admission.policy == "generous"


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
