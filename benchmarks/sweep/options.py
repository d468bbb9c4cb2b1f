"""Command-line options of `sweep` and `run`."""

import argparse
import math
import os
import pathlib
import secrets
from collections.abc import Sequence

from benchmarks.arguments import Arguments, add_price, address, header, json_object, numbers, positive, say
from benchmarks.generator.hosts import Listener, read_token
from benchmarks.recording.results import Goal, Promise
from benchmarks.sweep.parsers import adapters, lengths, many_lengths, span, stairs, think_time
from benchmarks.sweep.planner import Listed, Planner, Sizes
from benchmarks.sweep.quick import Quick
from benchmarks.sweep.session import Settings
from benchmarks.sweep.systems import HERE, INPROCESS, NO_ADMISSION
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions
from benchmarks.targets.tokenizer import load_vocabulary
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import AtMost, Distribution, Empirical, Fixed, Lengths, Workload
from benchmarks.workload.texts import read_texts
from benchmarks.workload.traces import Arrival, read_trace
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import parse_engine_args

# Measurements of a load that is repeated until its interval is narrow.
MAX_REPEATS = 8


def add_options(command: argparse.ArgumentParser) -> None:
    _add_systems(command)
    _add_client(command)
    _add_durations(command)
    _add_shape(command)
    command.add_argument("--no-ceiling", action="store_true", help="skip the measurement of the generator's ceiling (1 s)")
    add_price(command)
    command.add_argument("--out", type=pathlib.Path, default=pathlib.Path("run.json"), metavar="FILE.json")
    words = "continue the run in --out where it was interrupted; the rest of the command must be the same"
    command.add_argument("--resume", action="store_true", help=words)


def _add_systems(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("what is measured").add_argument
    words = "inprocess, http (our server over the same engine) or a server's URL; separate several by commas (default: %(default)s)"
    add("--target", default="inprocess", help=words)
    words = "admission policies of our targets: lategate, none, fixed:N, vllm:R:T, gradient2, thin:R; comma-separated (default: none)"
    add("--admission", type=lambda text: tuple(text.split(",")), default=(NO_ADMISSION,), metavar="NAME,...", help=words)
    add("--model", help="our targets: bundled, a folder or a hub name; a server: its name for the model")
    add("--engine", choices=list(ENGINES), default="vllm")
    add("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    add("--processes", type=positive(int), default=1, help="generator processes for HTTP, one core each (default: 1)")
    words = "wait for `benchmarks worker` on other hosts at this address, and let them send the requests to the servers at URLs"
    add("--workers-listen", type=address, metavar="HOST:PORT", help=words)
    words = "with --workers-listen: generator processes to wait for (default: %(default)s)"
    add("--expect-workers", type=positive(int), default=1, metavar="N", help=words)
    words = "vocabulary size of a remote server's model (default: %(default)s)"
    add("--vocabulary", type=positive(int), default=32_000, help=words)


def _add_client(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("targets over HTTP").add_argument
    add("--api-key", metavar="KEY", help="sent to servers at a URL as a bearer token (default: the environment's OPENAI_API_KEY)")
    add("--header", type=header, action="append", default=[], metavar="NAME:VALUE", help="a further header; may be given several times")
    add("--insecure", action="store_true", help="accept any TLS certificate")
    add("--chat", action="store_true", help="send chat completions instead of completions")
    words = "path of the requests, relative to the API's base URL, or with a / to the host (default: completions or chat/completions)"
    add("--endpoint", default="", metavar="PATH", help=words)
    words = "further fields of each request; null removes a field that is sent otherwise"
    add("--extra-body", type=json_object, default={}, metavar="JSON", help=words)
    words = "send prompts as text of this model's tokens, and count answers by it that the server does not count"
    add("--tokenizer", metavar="MODEL", help=f"{words}: bundled, a folder or a hub name")


def _add_durations(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("load").add_argument
    add("--requests", type=positive(int), default=32, help="minimum number of requests in a closed loop (default: %(default)s)")
    words = "minimum number of requests per client in a closed loop (default: %(default)s)"
    add("--per-client", type=positive(int), default=6, help=words)
    words = "start all clients of a closed loop together with full-length answers, as other tools do; the clients then stay in step"
    add("--in-step", action="store_true", help=words)
    add("--seconds", type=positive(float), default=30.0, help="duration of an open loop in seconds (default: %(default)s)")
    words = "end an open loop once its rate is clearly above what the server serves"
    add("--stop-when-saturated", action="store_true", help=words)
    add("--warm-up", type=positive(int), default=4, help="warm-up requests before each point, not counted (default: %(default)s)")
    add("--slo-ttft", type=positive(float), metavar="S", help="target time to first token in seconds, for goodput and admission")
    add("--slo-tpot", type=positive(float), metavar="S", help="target time per output token after the first, in seconds")


def add_repeats(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("repeats").add_argument
    words = "measurements of each point, each with different prompts (default: 1; with --until-width their maximum number, default: 8)"
    add("--repeats", type=positive(int), help=words)
    words = (
        "repeat each point until the 95 %% interval of its repeats is narrower than this share of its throughput (open loop: of E2E p50)"
    )
    add("--until-width", type=positive(float), metavar="SHARE", help=words)


def _add_shape(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("requests").add_argument
    words = "prompts as text: ShareGPT's JSON, or JSON lines with a prompt in each"
    add("--prompt-file", type=pathlib.Path, metavar="FILE", help=words)
    words = "default: those of the answers in --prompt-file, or 64"
    add("--output-tokens", type=lengths, metavar="LENGTHS", help=words)
    words = "let the model end its answers; --output-tokens is then their greatest length"
    add("--natural-lengths", action="store_true", help=words)
    words = "give up an answer after this time in seconds (default: %(default)g, as OpenAI's clients)"
    add("--timeout", type=positive(float), default=600.0, metavar="S", help=words)
    words = "tokens that all prompts begin with, in addition to --prompt-tokens"
    add("--shared-prefix", type=int, default=0, metavar="N", help=words)
    add("--turns", type=lengths, default="1", metavar="LENGTHS", help="turns of a conversation (default: %(default)s)")
    words = "seconds between an answer and the next turn: 2, exponential:2, normal:2:0.5 or lognormal:2:0.6 (default: none)"
    add("--think-time", type=think_time, metavar="SECONDS", help=words)
    words = "LoRA adapters with their shares of the requests; the rest is for the model itself"
    add("--adapters", type=adapters, default=(), metavar="NAME:SHARE,...", help=words)
    add("--tenants", type=positive(int), default=1, metavar="N")
    add("--priorities", type=int, nargs="+", default=[0], metavar="P", help="request priorities, drawn with equal probability")
    words = "share of requests whose client leaves after --patience seconds"
    add("--cancelling", type=float, default=0.0, metavar="SHARE", help=words)
    add("--patience", type=positive(float), default=1.0, metavar="S")
    add("--seed", type=int, default=1)
    words = "makes the prompts of this run differ from those of any other; a run records its salt, and the same one repeats its prompts"
    add("--salt", metavar="TEXT", help=f"{words} (default: random)")


def add_loads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--concurrency", type=numbers(int), metavar="N,N,...", help="clients of each closed loop")
    command.add_argument("--rate", type=numbers(float), metavar="R,R,...", help="requests per second of each open loop")
    words = "instead of given loads, choose few short closed loops: a first answer in two minutes on a CPU"
    command.add_argument("--quick", action="store_true", help=words)
    add_burstiness(command)
    names = ("--prompt-tokens", "--prompt-lengths")
    command.add_argument(
        *names, dest="prompts", type=many_lengths, default="128", metavar="LENGTHS,...", help="each is measured at each load"
    )


def add_load(command: argparse.ArgumentParser) -> None:
    load = command.add_mutually_exclusive_group(required=True)
    load.add_argument("--concurrency", type=positive(int), metavar="N", help="clients of a closed loop")
    load.add_argument("--rate", type=positive(float), metavar="R", help="requests per second of an open loop")
    load.add_argument("--ramp", type=span, metavar="FIRST:LAST", help="a rate that changes linearly over --seconds")
    load.add_argument("--steps", type=stairs, metavar="RATE:SECONDS,...", help="a rate that changes in steps")
    load.add_argument("--trace", type=pathlib.Path, metavar="FILE", help="recorded traffic: JSONL or CSV of Mooncake, Azure or BurstGPT")
    command.add_argument("--trace-speed", type=positive(float), default=1.0, metavar="X", help="replay speed relative to the recording")
    command.add_argument("--trace-limit", type=positive(int), metavar="N", help="replay only the first N requests")
    add_burstiness(command)
    command.add_argument("--prompt-tokens", dest="prompts", type=many_lengths, default="128", metavar="LENGTHS")


def add_burstiness(command: argparse.ArgumentParser) -> None:
    words = "arrival gaps of an open loop: inf is constant, 1 is Poisson (the default), less than 1 is bursty"
    command.add_argument("--burstiness", type=float, default=1.0, metavar="SHAPE", help=words)


def open_loop(rate: float, burstiness: float) -> Load:
    if burstiness == math.inf:
        return Load(pattern="constant", rate=rate)
    if not burstiness > 0:
        raise TargetError(f"--burstiness must be above 0, not {burstiness}")
    return Load(pattern="poisson" if burstiness == 1 else "gamma", rate=rate, shape=burstiness)


def sweep_loads(options: Arguments) -> list[Load]:
    closed = [Load(concurrency=number, staggered=not options.in_step) for number in options.concurrency or ()]
    return closed + [open_loop(rate, options.burstiness) for rate in options.rate or ()]


def run_load(options: Arguments) -> Load:
    if options.concurrency:
        return Load(concurrency=options.concurrency, staggered=not options.in_step)
    if options.rate:
        return open_loop(options.rate, options.burstiness)
    if options.ramp:
        return Load(pattern="ramp", ends=options.ramp)
    if options.steps:
        return Load(pattern="steps", stairs=options.steps)
    return Load(pattern="trace", trace=tuple(read_trace(options.trace, speed=options.trace_speed, limit=options.trace_limit)))


def sizes(options: Arguments) -> Sizes:
    return Sizes(requests=options.requests, per_client=options.per_client, seconds=options.seconds)


def listed(options: Arguments, loads: list[Load], prompts: list[Lengths]) -> Planner:
    """Return the planner of given loads; raises TargetError if there are none."""
    if not loads:
        raise TargetError("nothing to measure: pass --concurrency 1,2,4 or --rate 0.5,1,2")
    width = options.until_width
    repeats = options.repeats or (1 if width is None else MAX_REPEATS)
    return Listed(loads=loads, prompts=prompts, sizes=sizes(options), repeats=repeats, width=width)


def sweep_planner(options: Arguments, prompts: list[Lengths]) -> Planner:
    """Return the planner of a sweep; raises TargetError for an invalid combination."""
    if not options.quick:
        return listed(options, sweep_loads(options), prompts)
    if options.concurrency or options.rate or options.repeats or options.until_width or len(prompts) > 1:
        raise TargetError("--quick chooses the loads: leave out --concurrency, --rate, --repeats, --until-width and further prompt lengths")
    return Quick(prompt=prompts[0], staggered=not options.in_step)


def settings(options: Arguments, *, trace: Sequence[Arrival] = (), goal: Goal | None = None) -> Settings:
    """Convert the options to settings; raises TargetError for an invalid combination."""
    if not 0 <= options.cancelling <= 1:
        raise TargetError(f"--cancelling must be a share from 0 to 1, not {options.cancelling:g}")
    if options.out.suffix != ".json":
        raise TargetError(f"--out must end in .json, not {options.out}")
    targets = list(dict.fromkeys(options.target.split(",")))
    prompts, output = _lengths(options, trace)
    return Settings(
        admissions=options.admission,
        targets=targets,
        workload=_workload(options, prompts[0], AtMost(output) if options.natural_lengths else output),
        out=options.out,
        prompts=prompts,
        model=options.model,
        engine=options.engine,
        engine_args=parse_engine_args(options.engine_arg),
        processes=options.processes,
        vocabulary=options.vocabulary,
        warm_up=options.warm_up,
        promise=Promise(ttft=options.slo_ttft, tpot=options.slo_tpot),
        price_per_hour=options.price_per_hour,
        ceiling_seconds=0.0 if options.no_ceiling else 0.5,
        client=_client(options),
        workers=_workers(options, targets),
        resume=options.resume,
        goal=goal,
        stop_when_saturated=options.stop_when_saturated,
    )


def _workers(options: Arguments, targets: Sequence[str]) -> Listener | None:
    """Return where workers connect. Raises TargetError if they cannot load the targets."""
    if options.workers_listen is None:
        return None
    local = [target for target in targets if target in (INPROCESS, HERE)]
    if local:
        raise TargetError(f"--workers-listen: workers load servers at URLs, and --target has {local[0]}, which is in this process")
    if options.processes != 1:
        raise TargetError("--processes: with --workers-listen, each host's `benchmarks worker` has this option")
    return Listener(address=options.workers_listen, expected=options.expect_workers, token=read_token() or secrets.token_urlsafe(24))


def _client(options: Arguments) -> ClientOptions:
    """Return how requests are sent over HTTP; `http` and URLs get the same."""
    return ClientOptions(
        prompts="chat" if options.chat else "text" if options.tokenizer else "ids",
        endpoint=options.endpoint,
        api_key=options.api_key if options.api_key is not None else os.environ.get("OPENAI_API_KEY"),
        headers=dict(options.header),
        insecure=options.insecure,
        extra_body=options.extra_body,
        tokenizer=options.tokenizer,
    )


def _lengths(options: Arguments, trace: Sequence[Arrival]) -> tuple[list[Lengths], Distribution]:
    """Return the lengths of the prompts and of the answers: those of the options, of a trace or of a file.

    Raises TargetError, or UnreadableFile for the file.
    """
    output = options.output_tokens or Fixed(64)
    if options.think_time is not None and (trace or str(options.turns) == "1"):
        reason = "a trace has its own times between turns" if trace else "it is the time between the turns of --turns"
        raise TargetError(f"--think-time: {reason}")
    if trace:
        name = options.trace.name
        return [Empirical(tuple(arrival.prompt for arrival in trace), name)], Empirical(tuple(arrival.output for arrival in trace), name)
    if options.prompt_file is None:
        return options.prompts, output
    if options.shared_prefix or str(options.turns) != "1":
        raise TargetError("--shared-prefix and --turns need prompts of token ids, so not --prompt-file")
    texts = read_texts(options.prompt_file, load_vocabulary(options.tokenizer).count)
    if texts.with_images:
        say(f"{options.prompt_file}: skipped {texts.with_images:,} entries with images, and read {len(texts.texts):,} prompts")
    return [texts], options.output_tokens or texts.answers or output


def _workload(options: Arguments, prompt: Lengths, output: Distribution | AtMost) -> Workload:
    return Workload(
        prompt=prompt,
        output=output,
        vocabulary=(0, 1),
        seed=options.seed,
        shared_prefix=options.shared_prefix,
        turns=options.turns,
        think=options.think_time,
        adapters=options.adapters,
        tenants=("default",) if options.tenants == 1 else tuple(f"tenant-{number}" for number in range(options.tenants)),
        priorities=tuple(options.priorities),
        cancelling=options.cancelling,
        patience=options.patience,
        natural=options.natural_lengths,
        timeout=options.timeout,
        salt=secrets.token_hex(4) if options.salt is None else options.salt,
    )
