"""`python -m benchmarks images`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness import images
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.vllm.args import parse_engine_args

NAME = "images"
HELP = "send many images at once; report how much they delay the event loop"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command, default="simulated")
    command.add_argument("--count", type=positive(int), default=64, help="images of each kind (default: %(default)s)")
    command.add_argument("--megapixels", type=positive(float), default=4.0, help="size of an image (default: %(default)s)")
    command.add_argument("--kind", action="append", choices=images.KINDS, help="kind of file (default: JPEG and PNG)")
    command.add_argument("--http", action="store_true", help="send them over HTTP from another process, in bodies of at most 4 MiB")
    add_out(command)


def run(given: Arguments) -> int:
    args = parse_engine_args(given.engine_arg)
    if given.engine == "simulated":
        args = {"image_tokens": 576} | args
    config = ManagerConfig(admission=AdmissionConfig(max_waiting=given.count))
    manager = EngineManager.open(given.model, engine=given.engine, engine_args=args, config=config)
    kinds = given.kind or ("JPEG", "PNG")
    found = asyncio.run(images.measure(manager, given.count, given.megapixels, kinds, say, http=given.http))
    print(images.conclude(found))
    keep(found, given.out)
    return 0
