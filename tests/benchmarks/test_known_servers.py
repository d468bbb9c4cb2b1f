"""Servers of ten shapes, whose saturation is known: the verdict finds it, and claims nothing else."""

import attrs
import pytest
from support.known_servers import Server, analysed, closed

from benchmarks.analysis.knee import Knee, NoKnee
from benchmarks.analysis.report import conclusion

LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
FIXED = Server(step=lambda batch: 0.02)
FULL_BATCH = Server(step=lambda batch: 0.02 + 0.0001 * batch, max_batch=8)
# Half of the step's time comes from the batch at 20 requests, where the two asymptotes meet.
LINEAR = Server(step=lambda batch: 0.02 + 0.001 * batch)
GRADUAL = Server(step=lambda batch: 0.02 * (1 + (batch / 20) ** 0.8) ** 1.25)
ENGINE = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
URL = ("running", "waiting")


def swept(server, engine=None, seed=0):
    analysis = analysed([closed(server, level, seed) for level in LEVELS], engine)
    found = analysis.sweeps[0].saturation
    assert found is not None
    return found


CLOSED = {
    "full batch": (FULL_BATCH, {"max_num_seqs": 8}, 8, "batch", "max_num_seqs is 8 and 8.0 more requests wait"),
    "full batch of a URL": (attrs.evolve(FULL_BATCH, reports=URL), None, 8, "batch", "the server runs 8 requests at a time while 8.0"),
    "full batch, no metrics": (attrs.evolve(FULL_BATCH, reports=()), None, 8, "first token", "the server reports no queue"),
    "KV cache": (attrs.evolve(FIXED, kv_tokens=12 * 84), ENGINE, 12, "kv cache", "the KV cache is full (100%"),
    "host": (attrs.evolve(FIXED, host=0.001), ENGINE, 20, "host process", "% of a core"),
    "linear steps": (LINEAR, ENGINE, 20, "step time", "nothing waits, but a step of the engine takes"),
    "linear steps, no metrics": (attrs.evolve(LINEAR, reports=()), None, 20, "step time", "per later token 1."),
    "refusing a quarter": (attrs.evolve(FULL_BATCH, refuse_every=4), {"max_num_seqs": 8}, 8, "batch", "The server refuses 25% of"),
    "gradual": (GRADUAL, ENGINE, 20, "step time", "nothing waits"),
}


@pytest.mark.parametrize(("server", "engine", "knee", "cause", "words"), CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("seed", range(3))
def test_a_known_knee_lies_in_its_interval_and_has_its_cause(server, engine, knee, cause, words, seed):
    found = swept(server, engine, seed)
    assert isinstance(found.knee, Knee), found.verdict
    assert found.knee.low <= knee <= found.knee.high
    assert found.cause is not None
    assert found.cause.name == cause
    assert words in found.verdict


NO_KNEE = {
    "flat": (attrs.evolve(FIXED, max_batch=1), "throughput does not grow with the load"),
    "still growing": (FIXED, "still grows at concurrency 128"),
    "refusing most": (attrs.evolve(FIXED, max_open=12), "The server refuses 99% of the requests at concurrency 32"),
}


@pytest.mark.parametrize(("server", "words"), NO_KNEE.values(), ids=NO_KNEE)
@pytest.mark.parametrize("seed", range(3))
def test_a_server_without_a_known_knee_gets_none(server, words, seed):
    found = swept(server, ENGINE, seed)
    assert isinstance(found.knee, NoKnee)
    assert words in found.verdict


@pytest.mark.parametrize(
    ("server", "engine", "words"),
    [
        (FULL_BATCH, {"max_num_seqs": 8}, "set --max-running 8, because further requests only wait"),
        (
            attrs.evolve(FULL_BATCH, reports=URL),
            None,
            "let at most 8 requests run (llmserve: --max-running 8), because further requests only wait",
        ),
        (LINEAR, ENGINE, "no limit follows from the knee, because doubling the load beyond it still adds 25%"),
    ],
)
def test_the_advice_follows_from_the_verdict(server, engine, words):
    """Regression: steps that grow linearly got "more only wait" at half of the peak."""
    found = swept(server, engine)
    assert words in " ".join(found.advice)
    assert sum("only wait" in line for line in found.advice) == ("only wait" in words)


def test_a_server_without_metrics_gets_no_claim_about_waiting():
    """Regression: "nothing waits" where the TTFT was eight times as long."""
    found = swept(attrs.evolve(FULL_BATCH, reports=()))
    assert "wait" not in found.verdict + found.evidence + " ".join(found.advice)


def test_the_conclusion_prints_what_the_verdict_says():
    analysis = analysed([closed(FULL_BATCH, level) for level in LEVELS], {"max_num_seqs": 8})
    verdict = analysis.sweeps[0].saturation
    assert verdict is not None
    assert verdict.verdict in conclusion(analysis)
