"""What the reader of a point's figures must know beside them: failures in the server's words, and how tokens were counted. Pure."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.recording.results import Counted, Point, RequestRecord, Worker

# Number of different failures that are shown.
MAX_FAILURES = 3
COUNTED: dict[Counted, str] = {
    "spread": "the server counted the tokens of several chunks together, and they were spread over the chunks by the length of the text",
    "tokenizer": "the server counted no tokens, so --tokenizer counted the text",
    "chunks": "the server counted no tokens, so each chunk counts as one token",
}


def failures(records: Sequence[RequestRecord]) -> list[str]:
    """Return the most frequent failures: their number, outcome and the first one's message.

    Messages that differ only in their numbers are one failure.
    """
    failed = [record for record in records if record.outcome not in ("ok", "cancelled")]
    keys = [(record.outcome, re.sub(r"\d+", "0", record.detail)) for record in failed]
    first = {key: record.detail for key, record in zip(reversed(keys), reversed(failed), strict=True)}
    most = Counter(keys).most_common(MAX_FAILURES)
    lines = [f"{count} x {key[0]}{f': {first[key]}' if first[key] else ''}" for key, count in most]
    others = len(failed) - sum(count for _, count in most)
    return [*lines, f"{others} others"] if others else lines


def remarks(records: Sequence[RequestRecord]) -> list[str]:
    """Return how the tokens were counted, if the server did not count each chunk, and natural lengths."""
    answers = [record for record in records if record.outcome == "ok"]
    counted = Counter(record.counted for record in answers)
    found = [f"{counted[way]} answers: {words}" for way, words in COUNTED.items() if counted[way]]
    if any(record.completion_tokens != record.wanted_tokens for record in answers):
        least, median, most = np.quantile([record.completion_tokens for record in answers], [0, 0.5, 1])
        found.append(f"the model ended its answers: {least:.0f} to {most:.0f} tokens, median {median:.0f}")
    return found


def workers(points: Sequence[Point]) -> list[str]:
    """Return what each worker sent in all points, and how well its clock was known."""
    found: dict[str, list[Worker]] = {}
    for point in points:
        for worker in point.workers:
            found.setdefault(worker.name, []).append(worker)
    return [
        f"{name}: {sum(each.requests for each in parts)} requests in {len(parts)} points, clock {parts[-1].clock_offset:+.3f} s, "
        f"known within {max(each.clock_error for each in parts) * 1000:.2f} ms"
        for name, parts in found.items()
    ]


def lists(rows: Sequence[tuple[Point, Sequence[str], Sequence[str]]]) -> dict[str, list[str]]:
    """Return all points' failures, remarks and workers in lines, each list under its heading."""
    failed = [f"{point.name}: {'; '.join(failures)}" for point, failures, _ in rows if failures]
    remarked = [f"{point.name}: {'; '.join(remarks)}" for point, _, remarks in rows if remarks]
    lists = {"Failed requests": failed, "Remarks": remarked, "Workers": workers([point for point, _, _ in rows])}
    return {head: lines for head, lines in lists.items() if lines}
