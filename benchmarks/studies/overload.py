"""`python -m benchmarks overload`."""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from benchmarks.arguments import Arguments, add_out, keep, numbers, positive
from benchmarks.overload import cost, league, quiet
from benchmarks.overload.recorded import trace_scenario
from benchmarks.overload.scenarios import SCENARIOS, Scenario
from benchmarks.overload.study import TestBed
from benchmarks.overload.tables import Study, bursts_table, cost_table, light_table, overload_table, retries_table, tenants_table
from llmserve import SLO, ConfigurationError
from llmserve.runtime.cpus import available_cpus

NAME = "overload"
HELP = "simulate admission under overload in virtual time: LateGate and the alternatives"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workloads",
        default=",".join(SCENARIOS),
        metavar="NAME,...",
        help="workloads to simulate, or files of recorded requests (default: %(default)s)",
    )
    words = "most tokens of a step of the simulated engine, vLLM's max_num_batched_tokens (default: %(default)s)"
    command.add_argument("--step-tokens", type=positive(int), default=8192, metavar="N", help=words)
    command.add_argument("--slo-ttft", type=positive(float), default=1.0, metavar="S", help="SLO of the recorded requests (default: 1)")
    command.add_argument("--slo-tpot", type=positive(float), default=0.05, metavar="S", help="the same (default: 0.05)")
    words = "seconds of the recorded requests that each seed judges (default: 120)"
    command.add_argument("--seconds", type=positive(float), default=120.0, metavar="S", help=words)
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
    command.add_argument("--league", action="store_true", help="instead, compare all policies of benchmarks/stand_ins/contenders")
    add_out(command)


def run(given: Arguments) -> int:
    scenarios = [_scenario(name, given) for name in given.workloads.split(",")]
    mixed = _scenario("mixed", given)
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(available_cpus()) as pool, tqdm(desc="simulations", unit="run", file=sys.stderr, dynamic_ncols=True) as bar:
        study = Study(TestBed(pool, bar.update), given.seeds, given.tuning, mixed)
        if given.league:
            found = league.League(study, pool, bar.update).measure(scenarios, given.offered)
            print(league.tables(found))
            keep(found, given.out)
            return 0
        steady = [scenario for scenario in scenarios if scenario.drop is None and scenario.later is None]
        found["light"] = study.light(steady, given.light)
        found["overload"] = study.overload(scenarios, given.offered)
        found["bursts"] = study.bursts([scenario for scenario in steady if scenario.trace is None])
        if mixed in scenarios:
            found["tenants"] = study.tenants(mixed, given.offered)
            found["quiet"] = quiet.measure(study.bench, given.seeds, given.step_tokens)
            found["retries"] = study.retries(mixed, 2.0)
        found["capacities"] = study.capacities
        found["cost"] = cost.measure()
    shown = (
        (f"At {given.light:g} times the capacity", light_table, "light"),
        ("Overload", overload_table, "overload"),
        ("Four tenants, one of which floods", tenants_table, "tenants"),
        (f"A tenant with {quiet.QUIET_RATE:g} request a second beside one with {quiet.FLOOD_RATE:g}", quiet.table, "quiet"),
        ("After ten seconds at ten times the capacity", bursts_table, "bursts"),
        ("What refused clients do, at twice the capacity", retries_table, "retries"),
        (f"What a decision costs with {cost.RUNNING} running", cost_table, "cost"),
    )
    print("\n\n".join(f"### {title}\n\n{table(found[key])}" for title, table, key in shown if found.get(key)))
    keep(found, given.out)
    return 0


def _scenario(name: str, given: Arguments) -> Scenario:
    """Return a workload of the study, or of a trace. Raises ConfigurationError."""
    scenario = SCENARIOS.get(name)
    if scenario is None:
        path = Path(name)
        if not path.suffix:
            raise ConfigurationError(f"unknown workload {name!r}; choose from {', '.join(SCENARIOS)}, or name a file")
        scenario = trace_scenario(path, SLO(ttft=given.slo_ttft, tpot=given.slo_tpot), given.seconds)
    return attrs.evolve(scenario, size=attrs.evolve(scenario.size, max_num_batched_tokens=given.step_tokens))
