"""`python -m benchmarks COMMAND`: measure a model under load and report why it saturates."""

import argparse
import asyncio
import pathlib
import sys
from typing import Any

from benchmarks.analysis import compare, predict, report
from benchmarks.host_cost import latency, overhead, parity
from benchmarks.overload import command
from benchmarks.recording import storage
from benchmarks.recording.storage import UnreadableRun
from benchmarks.robustness import cancellations, cluster, connections, engine_faults, hostile_schemas, soak, storms
from benchmarks.robustness.attacks.command import add_attacks, run_attacks
from benchmarks.sweep import generator_ceiling, options, session
from benchmarks.targets import TargetError
from benchmarks.workload.traces import UnreadableTrace
from llmserve import ConfigurationError, EngineError, EngineManager
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import parse_engine_args


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_sweep(given: argparse.Namespace) -> int:
    return session.execute(options.settings(given, options.sweep_loads(given)))


def run_run(given: argparse.Namespace) -> int:
    return session.execute(options.settings(given, [options.run_load(given)]))


def run_table(given: argparse.Namespace) -> int:
    print(report.conclusion(report.analyse(storage.read(given.run))))
    return 0


def run_compare(given: argparse.Namespace) -> int:
    a, b = (report.analyse(storage.read(path)) for path in (given.a, given.b))
    ratios = compare.compare(a, b)
    if not ratios:
        raise UnreadableRun(f"{given.a} and {given.b} share no load")
    print(compare.table(ratios, given.margin))
    return int(any(ratio.regressed(given.margin) for ratio in ratios))


def run_predict(given: argparse.Namespace) -> int:
    print(predict.predict(report.analyse(storage.read(given.run)), given.concurrency, given.prompt_tokens, given.output_tokens))
    return 0


def run_selftest(given: argparse.Namespace) -> int:
    found = asyncio.run(generator_ceiling.measure(given.seconds, lambda line: print(line, flush=True)))
    _keep(found, given.out)
    return 0


def run_schema(given: argparse.Namespace) -> int:
    sys.stdout.buffer.write(storage.readable(storage.schema()))
    return 0


def run_parity(given: argparse.Namespace) -> int:
    workload = parity.Workload(
        requests=given.requests,
        concurrency=given.concurrency,
        prompt_words=given.prompt_words,
        max_tokens=given.max_tokens,
        seed=given.seed,
    )
    engine_args = parse_engine_args(given.engine_arg)
    found = asyncio.run(parity.measure(given.model, engine_args, workload, given.rounds, lambda line: print(line, flush=True)))
    print(parity.conclude(found))
    _keep(found, given.out)
    return 0


def _keep(found: Any, out: pathlib.Path | None) -> None:
    """Write the results to a file if `--out` was given."""
    if out:
        out.write_bytes(storage.readable(found))


def run_overhead(given: argparse.Namespace) -> int:
    names, setting = options.side_names(given.sides), options.side_setting(given)
    measuring = overhead.measure(names, setting, given.streams, given.rounds, _say)
    found = asyncio.run(measuring)
    print(overhead.conclude(found, given.against))
    _keep(found, given.out)
    return 0


def run_connections(given: argparse.Namespace) -> int:
    found = asyncio.run(connections.measure(given.idle, given.others, _say))
    print(connections.conclude(found))
    _keep(found, given.out)
    return 0


def run_soak(given: argparse.Namespace) -> int:
    config = soak.config(given.at_once)
    manager = EngineManager.open(given.model, engine=given.engine, engine_args=parse_engine_args(given.engine_arg), config=config)
    length = soak.Length(requests=given.requests, seconds=given.seconds)
    found = asyncio.run(soak.measure(manager, length, given.at_once, given.seed, _say))
    print(soak.conclude(found))
    _keep(found, given.out)
    return int(not found.level)


def run_grammars(given: argparse.Namespace) -> int:
    manager = EngineManager.open(given.model, engine_args=parse_engine_args(given.engine_arg))
    found = asyncio.run(hostile_schemas.measure(manager, given.at_once, given.seconds, _say))
    print(hostile_schemas.conclude(found))
    _keep(found, given.out)
    return 0


def run_cluster(given: argparse.Namespace) -> int:
    found = asyncio.run(cluster.measure(_say))
    print(cluster.conclude(found))
    _keep(found, given.out)
    return 0


def run_storms(given: argparse.Namespace) -> int:
    found = asyncio.run(storms.measure(given.idle, given.clients, _say))
    print(storms.conclude(found))
    _keep(found, given.out)
    return 0


def run_cancels(given: argparse.Namespace) -> int:
    ends = cancellations.Ends()
    manager = EngineManager.open(given.model, engine=given.engine, engine_args=parse_engine_args(given.engine_arg), observers=[ends])

    def report(done: int) -> None:
        print(f"\r{done:,}", end="", file=sys.stderr, flush=True)

    counts = cancellations.Counts(inside=given.count, wires=given.wires, clients=given.clients, at_once=given.at_once, seed=given.seed)
    found = asyncio.run(cancellations.measure(manager, counts, ends, report))
    _say("")
    print(cancellations.conclude(found))
    _keep(found, given.out)
    return int(any(any(left.over.values()) for left in found.left))


def run_faults(given: argparse.Namespace) -> int:
    args = parse_engine_args(given.engine_arg)
    found = asyncio.run(
        engine_faults.measure(
            lambda config, ledger: EngineManager.open(given.model, engine_args=args, config=config, observers=[ledger]),
            engine_faults.SIGNALS[given.signal],
            seconds=given.seconds,
            every=given.every,
            clients=given.clients,
            stall=given.stall_timeout,
            report=_say,
        )
    )
    print(engine_faults.conclude(found))
    _keep(found, given.out)
    return int(bool(found.faults))


def run_latency(given: argparse.Namespace) -> int:
    found = asyncio.run(latency.measure(given.streams, given.requests, given.rounds, _say, alone=given.alone))
    print(latency.conclude(found))
    _keep(found, given.out)
    return 0


def _add_parity(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--concurrency", type=int, default=16)
    command.add_argument("--requests", type=int, default=32, help="requests per trial; a round has four trials (default: %(default)s)")
    command.add_argument("--prompt-words", type=int, default=32)
    command.add_argument("--max-tokens", type=int, default=48)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def _add_cancels(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine", choices=list(ENGINES), default="vllm")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--count", type=options.positive(int), default=2000, help="requests cancelled in process (default: %(default)s)")
    command.add_argument(
        "--wires",
        type=int,
        default=0,
        metavar="N",
        help="requests cancelled over HTTP, and as many over a raw socket (default: %(default)s)",
    )
    words = "HTTP clients that disconnect, to measure the time until the engine is notified (default: %(default)s)"
    command.add_argument("--clients", type=options.positive(int), default=1000, help=words)
    command.add_argument("--at-once", type=options.positive(int), default=32, help="concurrency (default: %(default)s)")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def _add_faults(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument(
        "--signal",
        choices=engine_faults.SIGNALS,
        default="kill",
        help="signal sent to the engine; stop makes the engine hang (default: %(default)s)",
    )
    command.add_argument("--seconds", type=options.positive(float), default=600.0, help="duration (default: %(default)s)")
    command.add_argument(
        "--every",
        type=options.positive(float),
        default=20.0,
        help="seconds that the engine is up before each signal (default: %(default)s)",
    )
    command.add_argument("--clients", type=options.positive(int), default=8)
    command.add_argument(
        "--stall-timeout",
        type=options.positive(float),
        default=5.0,
        help="seconds without a step before the engine counts as hung (default: %(default)s)",
    )
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sweep = commands.add_parser("sweep", help="measure several loads: closed loops (--concurrency) and open loops (--rate)")
    sweep.set_defaults(run_command=run_sweep)
    options.add_loads(sweep)
    options.add_options(sweep)
    run = commands.add_parser("run", help="measure one load: a closed or open loop, a ramp, steps, or recorded traffic")
    run.set_defaults(run_command=run_run)
    options.add_load(run)
    options.add_options(run)
    table = commands.add_parser("table", help="print a run's Markdown table and verdict")
    table.set_defaults(run_command=run_table)
    table.add_argument("run", type=pathlib.Path, metavar="FILE.json")
    versus = commands.add_parser(
        "compare", help="compare B with A at each load; exit code 1 if B is worse by more than the confidence interval"
    )
    versus.set_defaults(run_command=run_compare)
    versus.add_argument("a", type=pathlib.Path, metavar="A.json")
    versus.add_argument("b", type=pathlib.Path, metavar="B.json")
    versus.add_argument(
        "--margin", type=float, default=compare.MARGIN, help="ignore relative changes smaller than this (default: %(default)s)"
    )
    foretell = commands.add_parser(
        "predict", help="predict throughput at loads that were not measured, and report the error of such predictions"
    )
    foretell.set_defaults(run_command=run_predict)
    foretell.add_argument("run", type=pathlib.Path, metavar="FILE.json")
    foretell.add_argument("--concurrency", type=options.numbers(int), default=[], metavar="N,N,...")
    foretell.add_argument("--prompt-tokens", type=options.positive(int), help="default: as in the run's first sweep")
    foretell.add_argument("--output-tokens", type=options.positive(int), help="default: as in the run's first sweep")
    ceiling = commands.add_parser("self-test", help="measure the load generator's ceiling with an engine and a server that do no work")
    ceiling.set_defaults(run_command=run_selftest)
    ceiling.add_argument(
        "--seconds", type=options.positive(float), default=2.0, help="seconds of CPU time for each figure (default: %(default)s)"
    )
    ceiling.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    commands.add_parser("schema", help="print the JSON Schema of a run's files").set_defaults(run_command=run_schema)
    even = commands.add_parser(
        "parity", help="compare the throughput of an EngineManager and a bare AsyncLLM loop, alternating in one process"
    )
    even.set_defaults(run_command=run_parity)
    _add_parity(even)
    cost = commands.add_parser("overhead", help="measure the host CPU time per token, beside vLLM's own server")
    cost.set_defaults(run_command=run_overhead)
    options.add_overhead(cost)
    late = commands.add_parser("latency", help="measure the latency that each path adds to a token: in process, HTTP, raw sockets")
    late.set_defaults(run_command=run_latency)
    late.add_argument("--streams", type=options.positive(int), default=64, help="concurrent streams on each path (default: %(default)s)")
    late.add_argument("--requests", type=options.positive(int), default=64, help="requests on each path in a round (default: %(default)s)")
    late.add_argument("--rounds", type=options.positive(int), default=5)
    late.add_argument("--alone", action="store_true", help="measure the paths one after another, not at the same time")
    late.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    steps = commands.add_parser("calibrate", help="measure an engine's step times and fit a step law to them")
    steps.set_defaults(run_command=command.run_calibrate)
    command.add_calibrate(steps)
    over = commands.add_parser("overload", help="simulate admission under overload in virtual time: LateGate and the alternatives")
    over.set_defaults(run_command=command.run_overload)
    command.add_overload(over)
    broken = commands.add_parser("faults", help="kill or stop a real engine under load and account for every request")
    broken.set_defaults(run_command=run_faults)
    _add_faults(broken)
    leaving = commands.add_parser(
        "cancels", help="cancel requests at random moments; report leaks and the time until the engine is notified"
    )
    leaving.set_defaults(run_command=run_cancels)
    _add_cancels(leaving)
    still = commands.add_parser("connections", help="measure the cost of idle connections and of readers that stop reading")
    still.set_defaults(run_command=run_connections)
    still.add_argument("--idle", type=options.positive(int), default=10_000, help="idle connections (default: %(default)s)")
    still.add_argument(
        "--others", type=options.positive(int), default=1000, help="clients that read, then as many that do not (default: %(default)s)"
    )
    still.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    bad = commands.add_parser(
        "storms", help="open thousands of silent, unfinished or stalled connections; report the effect on other clients"
    )
    bad.set_defaults(run_command=run_storms)
    bad.add_argument(
        "--idle",
        type=options.positive(int),
        default=10_000,
        help="connections that stay idle, connect at once or reset at once (default: %(default)s)",
    )
    bad.add_argument("--clients", type=options.positive(int), default=5000, help="clients in each slow attack (default: %(default)s)")
    bad.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    hostile = commands.add_parser(
        "attacks", help="replay requests that once stopped a server, beside a canary; exit code 1 if a bound is broken"
    )
    hostile.set_defaults(run_command=run_attacks)
    add_attacks(hostile)
    forms = commands.add_parser(
        "grammars", help="send hostile schemas beside a stream; report the stream's gaps and the time to each refusal"
    )
    forms.set_defaults(run_command=run_grammars)
    forms.add_argument("--model", default="bundled")
    forms.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    forms.add_argument("--at-once", type=options.positive(int), default=16, help="concurrent requests of each kind (default: %(default)s)")
    forms.add_argument(
        "--seconds",
        type=options.positive(float),
        default=10.0,
        help="duration of the quiet phase before the attacks (default: %(default)s)",
    )
    forms.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    many = commands.add_parser(
        "cluster", help="measure replicas on a local Ray Serve with simulated engines: throughput, fairness, overhead"
    )
    many.set_defaults(run_command=run_cluster)
    many.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    long = commands.add_parser("soak", help="run requests of every kind for a long time; exit code 1 if memory grows")
    long.set_defaults(run_command=run_soak)
    long.add_argument("--model", default="bundled")
    long.add_argument("--engine", choices=list(ENGINES), default="simulated", help="default: %(default)s")
    long.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    long.add_argument("--requests", type=options.positive(int), default=1_000_000, help="default: %(default)s")
    long.add_argument("--seconds", type=options.positive(float), help="duration, instead of --requests")
    long.add_argument("--at-once", type=options.positive(int), default=32, help="concurrency (default: %(default)s)")
    long.add_argument("--seed", type=int, default=1)
    long.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    return parser


def main() -> None:
    """Exit with code 0, 1 (regression), 2 (wrong input, unmeasurable target) or 130 (Ctrl-C)."""
    parser = build_parser()
    given = parser.parse_args()
    try:
        sys.exit(given.run_command(given))
    except (ConfigurationError, EngineError, TargetError, UnreadableRun, UnreadableTrace) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
