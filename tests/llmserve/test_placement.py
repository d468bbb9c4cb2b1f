"""Which devices the engines of a pool get, and when their processes see the environment."""

import os
import sys
import threading
from types import ModuleType

import pytest

from llmserve import ConfigurationError
from llmserve.engines import create_engines
from llmserve.engines.vllm import placement as module
from llmserve.engines.vllm.placement import CORES, Placement, on_cpus, on_gpus, place
from llmserve.engines.vllm.spec import VLLMSpec
from llmserve.runtime.cpus import physical_cores
from llmserve.runtime.gpus import VISIBLE, visible_gpus


@pytest.mark.parametrize(
    ("gpus", "size", "count", "expected"),
    [
        # The devices of each engine, and the number of engines that share them.
        ("01", 1, 2, [("0", 1), ("1", 1)]),
        ("0123", 1, 2, [("0", 1), ("1", 1)]),
        ("0", 1, 2, [("0", 2), ("0", 2)]),
        ("01", 1, 3, [("0", 2), ("1", 1), ("0", 2)]),
        ("01", 1, 4, [("0", 2), ("1", 2), ("0", 2), ("1", 2)]),
        ("0123", 2, 2, [("0,1", 1), ("2,3", 1)]),
        ("01234", 2, 2, [("0,1", 1), ("2,3", 1)]),
    ],
)
def test_engines_are_spread_evenly_over_the_gpus(gpus, size, count, expected):
    placed = on_gpus(gpus, size, count)
    assert [(one.environment[VISIBLE], one.sharing) for one in placed] == expected
    assert [one.number for one in placed] == list(range(count))
    # Only engines that share a GPU wait for each other.
    assert [one.device for one in placed] == [devices if sharing > 1 else None for devices, sharing in expected]


@pytest.mark.parametrize(
    ("gpus", "size", "count", "message"),
    [
        ("0123", 2, 3, "engines=3 with 2 GPUs each needs 6 GPUs, and 4 can be used"),
        ("", 1, 2, "engines=2 needs a GPU"),
    ],
)
def test_more_than_the_gpus_can_take_is_refused_by_name(gpus, size, count, message):
    with pytest.raises(ConfigurationError, match=message):
        on_gpus(gpus, size, count)


@pytest.mark.parametrize(
    ("cores", "size", "count", "expected"),
    [
        ([0, 1], 1, 2, ["0", "1"]),
        ([3], 1, 2, ["3", "3"]),
        ([0, 1], 1, 3, ["0", "1", "0"]),
        # A worker with several cores leaves the last one to the engine's other processes.
        ([0, 1, 2, 3], 1, 2, ["0", "2"]),
        ([0, 1, 2, 4, 5, 6, 7], 1, 2, ["0,1", "4,5,6"]),
        ([0, 1, 2, 3, 4, 5, 6, 7], 2, 2, ["0|2", "4|6"]),
    ],
)
def test_engines_get_disjoint_cores_while_there_are_enough(cores, size, count, expected):
    placed = on_cpus(cores, size, count, bound=False)
    assert [one.environment[CORES] for one in placed] == expected
    assert {one.sharing for one in placed} == {count}


def test_cores_that_the_operator_gave_stay():
    assert on_cpus([0, 1], 1, 2, bound=True) == [Placement(number=0, sharing=2), Placement(number=1, sharing=2)]


@pytest.mark.parametrize(("args", "count"), [({}, 1), ({"data_parallel_backend": "ray"}, 2), ({"distributed_executor_backend": "ray"}, 2)])
def test_one_engine_and_those_of_ray_are_placed_by_vllm(args, count):
    assert place(args, count) == [Placement(number=number) for number in range(count)]


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr("llmserve.engines.vllm.args.has_gpu_build", lambda: True)
    monkeypatch.setattr(module, "has_gpu_build", lambda: True)
    monkeypatch.setenv(VISIBLE, "4,5,6,7")


@pytest.mark.usefixtures("four_gpus")
def test_a_pool_s_arguments_are_checked_by_name():
    assert [one.environment for one in place({"tensor_parallel_size": 2}, 2)] == [{VISIBLE: "4,5"}, {VISIBLE: "6,7"}]
    with pytest.raises(ConfigurationError, match="device_ids is for one engine: with engines=2"):
        place({"device_ids": [0, 1]}, 2)
    with pytest.raises(ConfigurationError, match="data_parallel_size must be whole numbers"):
        place({"data_parallel_size": "two"}, 2)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("args", "fit"), [({}, 4), ({"tensor_parallel_size": 2}, 2), ({"tensor_parallel_size": 8}, 1)])
def test_as_many_engines_fit_as_have_gpus_of_their_own(args, fit):
    assert VLLMSpec().engines_that_fit(args) == fit


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", []), ("0", ["0"]), ("2, 5", ["2", "5"]), ("GPU-8f2a,GPU-1c", ["GPU-8f2a", "GPU-1c"]), ("0,-1,1", ["0"]), ("-1", [])],
)
def test_the_visible_gpus_are_those_that_cuda_would_use(given, expected, monkeypatch):
    monkeypatch.setenv(VISIBLE, given)
    assert visible_gpus() == expected


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert visible_gpus() == []


def test_hardware_threads_of_one_core_count_once(monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 9})
    for cpu, siblings in ((0, "0,2"), (2, "0,2"), (1, "1,3"), (3, "1,3")):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    # The system does not tell which core CPU 9 belongs to.
    assert physical_cores(tmp_path) == [0, 1, 9]


@pytest.mark.parametrize("count", [1, 3])
def test_engines_are_made_by_name_and_number(count):
    assert len(create_engines("simulated", "any", {}, count)) == count


def test_a_pool_has_at_least_one_engine():
    with pytest.raises(ConfigurationError, match="engines must be a whole number of at least 1, not 0"):
        create_engines("simulated", "any", {}, 0)


class Manager:
    """Stands for vLLM's class whose constructor starts an engine's processes."""

    def __init__(self, started):
        started(os.environ.get(VISIBLE))


@pytest.fixture
def manager(monkeypatch):
    made = type("Manager", (Manager,), {"__init__": Manager.__init__})
    for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["vllm.v1.engine.utils"], "CoreEngineProcManager", made, raising=False)
    return made


def wanted():
    pass


def test_only_the_engine_s_processes_see_its_environment(manager, monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,5")
    seen = []
    for number in ("4", "5"):
        with Placement(environment={VISIBLE: number}).loading(wanted):
            assert os.environ[VISIBLE] == "4,5"
            manager(seen.append)
            assert os.environ[VISIBLE] == "4,5"
    manager(seen.append)
    assert seen == ["4", "5", "4,5"]


def test_a_variable_that_was_not_set_is_unset_again_after_a_failure(manager, monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    with Placement(environment={VISIBLE: "1"}).loading(wanted), pytest.raises(ZeroDivisionError):
        manager(lambda _: 1 / 0)
    assert VISIBLE not in os.environ


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(("device", "waits"), [("0", True), (None, False)])
def test_an_engine_waits_for_the_one_before_on_its_device(device, waits):
    asked, up = threading.Event(), threading.Event()

    def load():
        with Placement(device=device).loading(asked.set):
            up.set()

    with Placement(device=device).loading(wanted):
        other = threading.Thread(target=load)
        other.start()
        assert (asked if waits else up).wait(60)
        assert up.is_set() is not waits
    other.join(60)
    assert up.is_set()


@pytest.mark.usefixtures("manager")
def test_a_start_that_is_given_up_waits_no_longer():
    class GivenUp(Exception):
        pass

    def check():
        raise GivenUp

    place = Placement(device="given up")
    with place.loading(wanted), pytest.raises(GivenUp), place.loading(check):
        pass
    # The device is free again.
    with place.loading(check):
        pass
