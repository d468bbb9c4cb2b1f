"""Commands `python -m benchmarks overload` and `calibrate`: options, printed tables, files."""

import argparse
import asyncio
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

from benchmarks.overload import calibrate, cost
from benchmarks.overload.scenarios import SCENARIOS
from benchmarks.overload.study import TestBed
from benchmarks.overload.tables import Study, bursts_table, cost_table, light_table, overload_table, retries_table, tenants_table
from benchmarks.recording.storage import readable
from benchmarks.sweep.options import numbers
from llmserve import ConfigurationError
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import parse_engine_args
from llmserve.runtime.cpus import available_cpus


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def add_calibrate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine", choices=list(ENGINES), default="vllm")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument(
        "--concurrency",
        type=numbers(int),
        default=[1, 4, 16, 64],
        metavar="N,N,...",
        help="clients of each closed loop (default: 1,4,16,64)",
    )
    command.add_argument("--out", type=pathlib.Path, default=pathlib.Path("steps.json"), metavar="FILE.json")


def run_calibrate(given: argparse.Namespace) -> int:
    steps = asyncio.run(calibrate.measure(given.model, given.engine, parse_engine_args(given.engine_arg), given.concurrency, _say))
    law = calibrate.fit(steps)
    print(f"{len(steps)} steps: {law}")
    calibrate.write(given.out, steps, law)
    return 0


def add_overload(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workloads", default=",".join(SCENARIOS), metavar="NAME,...", help="workloads to simulate (default: %(default)s)"
    )
    command.add_argument(
        "--offered",
        type=numbers(float),
        default=[1.5, 2.0, 5.0, 10.0],
        metavar="X,X,...",
        help="offered loads, as multiples of the capacity (default: 1.5,2,5,10)",
    )
    command.add_argument(
        "--seeds", type=numbers(int), default=[1, 2, 3, 4, 5], metavar="N,N,...", help="seeds of the simulations (default: 1,2,3,4,5)"
    )
    command.add_argument(
        "--tuning", type=int, default=1, help="how many of the seeds choose the parameters tuned in hindsight (default: 1)"
    )
    command.add_argument(
        "--light", type=float, default=0.8, help="load at which no request should be refused, as a multiple of the capacity (default: 0.8)"
    )
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def run_overload(given: argparse.Namespace) -> int:
    names = given.workloads.split(",")
    for name in names:
        if name not in SCENARIOS:
            raise ConfigurationError(f"unknown workload {name!r}; choose from {', '.join(SCENARIOS)}")
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(available_cpus()) as pool, tqdm(desc="simulations", unit="run", file=sys.stderr, dynamic_ncols=True) as bar:
        study = Study(TestBed(pool, bar.update), given.seeds, given.tuning)
        steady = [name for name in names if SCENARIOS[name].drop is None and SCENARIOS[name].later is None]
        found["light"] = study.light(steady, given.light)
        found["overload"] = study.overload(names, given.offered)
        found["tenants"] = study.tenants("mixed", given.offered)
        found["bursts"] = study.bursts(steady)
        found["retries"] = study.retries("mixed", 2.0)
        found["capacities"] = study.capacities
        found["cost"] = cost.measure()
    shown = (
        (f"At {given.light:g} times the capacity", light_table(found["light"])),
        ("Overload", overload_table(found["overload"])),
        ("Four tenants, one of which floods", tenants_table(found["tenants"])),
        ("After ten seconds at ten times the capacity", bursts_table(found["bursts"])),
        ("What refused clients do, at twice the capacity", retries_table(found["retries"])),
        (f"What a decision costs with {cost.RUNNING} running", cost_table(found["cost"])),
    )
    print("\n\n".join(f"### {title}\n\n{table}" for title, table in shown))
    if given.out:
        given.out.write_bytes(readable(found))
    return 0
