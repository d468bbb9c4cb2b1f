"""`python -m benchmarks overload`."""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

from benchmarks.arguments import Arguments, add_out, keep, numbers
from benchmarks.overload import cost
from benchmarks.overload.scenarios import SCENARIOS
from benchmarks.overload.study import TestBed
from benchmarks.overload.tables import Study, bursts_table, cost_table, light_table, overload_table, retries_table, tenants_table
from llmserve import ConfigurationError
from llmserve.runtime.cpus import available_cpus

NAME = "overload"
HELP = "simulate admission under overload in virtual time: LateGate and the alternatives"


def add_arguments(command: argparse.ArgumentParser) -> None:
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
    add_out(command)


def run(given: Arguments) -> int:
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
    keep(found, given.out)
    return 0
