"""`python -m benchmarks batch`."""

import argparse
from collections.abc import Callable

import anyio

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness.batch_load import Kind, Row, conclude, measure
from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.vllm.args import parse_engine_args

NAME = "batch"
HELP = "run a batch beside other requests; report how each slows the other"
# The step times of the bundled model on two CPU cores.
CPU = {"max_num_seqs": 16, "max_num_batched_tokens": 4096, "num_blocks": 100_000, "max_model_len": 4096} | {
    "step_seconds": 34e-3, "sequence_seconds": 0.85e-3, "prefill_token_seconds": 1.45e-3, "kv_token_seconds": 0.0,
}  # fmt: skip
OTHERS = [Kind(512, 16, 0.5), Kind(256, 16, 1.0), Kind(256, 16, 0.5), Kind(64, 16, 1.0)]


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command, default="simulated")
    words = "tokens of a line's prompt and of its answer (default: 24/32)"
    command.add_argument("--lines", type=kind(rate=False), default=Kind(24, 32), metavar="IN/OUT", help=words)
    words = "other requests: tokens in, tokens out, and how many come per second; repeatable (default: four kinds)"
    command.add_argument("--others", action="append", type=kind(rate=True), metavar="IN/OUT/RATE", help=words)
    words = "seconds of each measurement, of virtual time on the simulated engine (default: %(default)s)"
    command.add_argument("--seconds", type=positive(float), default=2000.0, help=words)
    add_out(command)


def kind(*, rate: bool) -> Callable[[str], Kind]:
    """Return a parser of `IN/OUT/RATE`, or without a rate of `IN/OUT`."""
    form = "IN/OUT/RATE" if rate else "IN/OUT"

    def parse(text: str) -> Kind:
        words = text.split("/")
        numbers = [int, int, float][: len(form.split("/"))]
        try:
            return Kind(*(positive(number)(word) for number, word in zip(numbers, words, strict=True)))
        except (ValueError, argparse.ArgumentTypeError):
            raise argparse.ArgumentTypeError(f"{text!r}: write {form}, each a number above 0") from None

    return parse


def run(given: Arguments) -> int:
    args, options = parse_engine_args(given.engine_arg), {}
    if given.engine == "simulated":
        args, options = CPU | args, {"loop_factory": VirtualLoop}
    # Nothing is refused, and so each request has a time to first token.
    config = ManagerConfig(admission=AdmissionConfig(max_waiting=10**6, max_wait=given.seconds))
    manager = EngineManager.open(given.model, engine=given.engine, engine_args=args, config=config)

    async def rows() -> list[Row]:
        return [row async for row in measure(manager, given.lines, given.others or OTHERS, given.seconds, say)]

    found = anyio.run(rows, backend_options=options)
    print(conclude(found))
    keep(found, given.out)
    return 0
