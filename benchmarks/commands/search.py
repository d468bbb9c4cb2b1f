"""`python -m benchmarks search`."""

import argparse

import attrs

from benchmarks.arguments import Arguments, positive
from benchmarks.recording.results import Goal
from benchmarks.search.planner import Search
from benchmarks.sweep import options, session
from benchmarks.sweep.parsers import many_lengths
from benchmarks.targets import TargetError
from benchmarks.workload.plan import Load

NAME = "search"
HELP = "find the highest rate or concurrency that meets an SLO; exit code 2 if no load meets it"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("search").add_argument
    add("--concurrency", action="store_true", help="search for a concurrency instead of a rate")
    words = "share of the requests that must meet --slo-ttft and --slo-tpot, or be answered without them (default: %(default)s)"
    add("--attainment", type=share, default=0.99, metavar="SHARE", help=words)
    words = "end when the interval is narrower than this share of the load (default: %(default)s)"
    add("--until-width", type=share, default=0.03, metavar="SHARE", help=words)
    words = "the first load (default: a concurrency of 1, or the rate at which one request at a time is on the server)"
    add("--start", type=positive(float), metavar="LOAD", help=words)
    add("--points", type=positive(int), default=8, metavar="N", help="maximum number of points on each target (default: %(default)s)")
    words = "maximum number of points of a load that is too close to call; each lasts twice as long (default: %(default)s)"
    add("--repeats", type=positive(int), default=3, help=words)
    add("--prompt-tokens", dest="prompts", type=many_lengths, default="128", metavar="LENGTHS")
    options.add_burstiness(command)
    options.add_options(command)


def share(text: str) -> float:
    """Parse a share between 0 and 1, exclusive."""
    found: float = positive(float)(text)
    if found >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a share between 0 and 1")
    return found


def run(given: Arguments) -> int:
    if len(given.prompts) > 1:
        raise TargetError("--prompt-tokens: a search has one distribution of prompt lengths")
    goal = Goal(loop="concurrency" if given.concurrency else "rate", attainment=given.attainment, width=given.until_width)
    settings = attrs.evolve(options.settings(given, goal=goal), stop_when_saturated=True)
    if given.concurrency and settings.promise.ttft is None and settings.promise.tpot is None:
        raise TargetError("--concurrency: pass --slo-ttft or --slo-tpot, because without an SLO every concurrency is answered")
    load = Load(concurrency=1, staggered=not given.in_step) if given.concurrency else options.open_loop(1.0, given.burstiness)
    planner = Search(
        goal=goal,
        promise=settings.promise,
        prompt=settings.prompts[0],
        load=load,
        sizes=options.sizes(given),
        start=given.start,
        points=given.points,
        repeats=given.repeats,
    )
    return session.execute(settings, planner)
