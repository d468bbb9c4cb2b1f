"""How many of a point's requests the server answered and refused, and how many failed. Pure."""

from benchmarks.analysis.summary import Summary

REFUSALS = ("refused_429", "refused_503")
# A client that leaves early is neither refused nor failed.
FAILURES = ("timeout", "connection", "error", "truncated", "wrong_token_count")
# A server that turns away a smaller share of its requests still serves the load.
SERVED_SHARE = 0.99


def answered(summary: Summary) -> int:
    """Return the number of complete answers, whether or not they met the SLO."""
    return summary.outcomes.get("ok", 0) + summary.outcomes.get("slo_missed", 0)


def refused(summary: Summary) -> int:
    """Return the number of requests that the server refused with 429 or 503."""
    return sum(summary.outcomes.get(name, 0) for name in REFUSALS)


def failed(summary: Summary) -> int:
    """Return the number of requests that failed: broken, late, wrong or incomplete answers."""
    return sum(summary.outcomes.get(name, 0) for name in FAILURES)


def refused_share(summary: Summary) -> float:
    return refused(summary) / summary.requests if summary.requests else 0.0


def failed_share(summary: Summary) -> float:
    return failed(summary) / summary.requests if summary.requests else 0.0
