"""The table of points: as Markdown, as CSV, with energy and cost."""

import csv
import io
import threading
import types

import pytest
from support.recordings import closed, write

from benchmarks.__main__ import main
from benchmarks.analysis import report
from benchmarks.analysis.table import as_csv, columns, markdown
from benchmarks.recording import storage
from benchmarks.recording.machine import Machine
from benchmarks.recording.monitor import Monitor, manager_source
from benchmarks.recording.results import Promise, Sample
from llmserve import EngineManager
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine


@pytest.fixture
def run(tmp_path):
    """Two points at 10 times the price of an hour in seconds, on GPUs that draw 300 W."""
    points = [closed(0, 1), closed(1, 2)]
    return write(tmp_path / "run.json", points, invalid={1}, promise=Promise(ttft=0.001), watts=300.0, price=36.0)


def test_the_csv_has_plain_numbers_and_every_fault(run):
    found = report.analyse(storage.read(run))
    first, second = csv.DictReader(io.StringIO(as_csv(found)))
    assert (first["target"], first["load"], first["requests"], first["answered"], first["met the SLO"]) == (
        "inprocess", "concurrency 1", "60", "60", "0",
    )  # fmt: skip
    assert float(first["tokens/s"]) == pytest.approx(found.views[0].summary.tokens_per_second, abs=1e-3)
    assert float(first["TTFT p50 (ms)"]) == pytest.approx(11.25)
    assert first["TTFT p99 (ms)"] == ""
    assert (first["valid"], first["faults"]) == ("yes", "")
    assert (second["valid"], second["faults"]) == ("no", "1 of 61 arrivals were dropped")


def test_energy_is_the_power_within_the_window_by_the_throughput(run):
    (view, _) = report.analyse(storage.read(run)).views
    (row, _) = csv.DictReader(io.StringIO(as_csv(report.analyse(storage.read(run)))))
    rate = view.summary.tokens_per_second
    assert float(row["J/token"]) == pytest.approx(300 / rate, rel=1e-3)
    assert float(row["cost per 1M tokens"]) == pytest.approx(0.01 / rate * 1e6, rel=1e-3)
    assert "GPUs draw 300 W" in str(view.evidence)


def test_columns_without_a_value_are_left_out_of_the_table(tmp_path):
    found = report.analyse(storage.read(write(tmp_path / "run.json", [closed(0, 1)])))
    assert not {"met the SLO", "J/token", "cost per 1M tokens"} & {column.heading for column in columns(found)}
    assert {"met the SLO", "J/token", "cost per 1M tokens"} <= {column.heading for column in columns(found, optional=True)}


def test_another_price_replaces_the_recorded_one(run, call):
    cheaper = call(main, "table", str(run), "--format", "csv", "--price-per-hour", "3.6").stdout
    recorded = call(main, "table", str(run), "--format", "csv").stdout
    costs = [float(next(csv.DictReader(io.StringIO(text)))["cost per 1M tokens"]) for text in (recorded, cheaper)]
    assert costs[0] == pytest.approx(10 * costs[1], rel=1e-3)
    assert "| cost per 1M tokens |" in call(main, "table", str(run)).stdout


def test_markdown_names_the_faults(run):
    words = markdown(report.analyse(storage.read(run)))
    assert "| TTFT p50 (ms) |" in words
    assert words.endswith("- inprocess, concurrency 2, prompt 16: 1 of 61 arrivals were dropped")


class NVMLError(Exception):
    pass


def nvml(*, known):
    """Return a library of two GPUs that have used 4 and 5 J, or cannot tell."""

    def energy(device):
        if not known:
            raise NVMLError
        return 4000 + 1000 * device

    return types.SimpleNamespace(
        NVMLError=NVMLError, nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=int, nvmlDeviceGetTotalEnergyConsumption=energy
    )


@pytest.mark.parametrize(("library", "joules"), [(nvml(known=True), 9.0), (nvml(known=False), None), (None, None)])
def test_the_machine_s_energy_is_that_of_all_gpus(library, joules):
    assert Machine(library=library).energy() == joules


def test_a_point_s_energy_begins_at_its_first_sample():
    async def read():
        return {}

    monitor = Monitor(0, read, samples=[Sample(point=0, time=float(at), energy=100.0 + 50 * at) for at in range(4)])
    assert [sample.energy for sample in monitor.since(1.0)] == [0.0, 50.0, 100.0]


@pytest.mark.parametrize(("known", "joules"), [(True, 9.0), (False, None)])
async def test_the_energy_is_read_beside_the_engine_s_figures(known, joules):
    """Off the event loop: NVML takes 6 ms on an H200, and a point is not valid if requests are sent 5 ms late."""
    threads = []

    class Slow(Machine):
        def energy(self):
            threads.append(threading.get_ident())
            return super().energy()

        vram = gpu = Machine.rss

    async with EngineManager(SimulatedEngine(SimulatedConfig(time_scale=0))) as manager:
        sample = await manager_source(manager, Slow(library=nvml(known=known)))()
    assert sample["energy"] == joules
    assert (threading.get_ident() in threads[1:]) is False
