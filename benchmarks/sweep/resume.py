"""Continues an interrupted run from its files (`--resume`)."""

import itertools
import sys
from pathlib import Path

import msgspec

from benchmarks.arguments import recorded_command
from benchmarks.recording import storage
from benchmarks.recording.results import Recording, Run
from benchmarks.targets import TargetError

RESUME = "--resume"
# What must not change between the parts of one run: other versions or another engine would be
# compared with themselves.
KEPT = ("versions", "model", "engine", "engine_args")


def command_line() -> str:
    """Return the command of this process, without `--resume` and without secrets."""
    return recorded_command([word for word in sys.argv[1:] if word != RESUME])


def read_earlier(path: Path) -> Recording | None:
    """Return the recording to continue, or None if there is no file yet.

    Raises TargetError if another command made the file.
    """
    if not path.exists():
        return None
    earlier = storage.read(path)
    if earlier.run.command != command_line():
        raise TargetError(f"--resume: {path} was made by a different command: {earlier.run.command}")
    if earlier.summary:
        raise TargetError(f"--resume: {path} has only a sample of its requests")
    return earlier


def continued(earlier: Recording, run: Run) -> Recording:
    """Return the earlier recording without its cut points, after a comparison with the new run.

    Raises TargetError if the requests, the model, the engine or a version differs.
    """
    if earlier.run.workload != msgspec.json.decode(msgspec.json.encode(run.workload)):
        raise TargetError("--resume: the earlier part of the run sent other requests, so the parts cannot be one run")
    theirs, ours = earlier.run.provenance, msgspec.json.decode(msgspec.json.encode(run.provenance))
    differing = [name for name in KEPT if theirs.get(name) != ours.get(name)]
    if differing:
        raise TargetError(f"--resume: the earlier part of the run has another {' and '.join(differing)}")
    points = list(itertools.takewhile(lambda point: point.complete or point.saturated_at is not None, earlier.run.points))
    numbers = {point.number for point in points}
    return Recording(
        msgspec.structs.replace(earlier.run, points=points, ceiling={}),
        [record for record in earlier.records if record.point in numbers],
        [sample for sample in earlier.samples if sample.point in numbers],
    )
