"""llmserve's own policy, with its default settings."""

from benchmarks.stand_ins.contender import Setup
from llmserve.admission import AdmissionController, build_admission
from llmserve.config import AdmissionConfig

SOURCE, URL = "llmserve", ""
HEADLINE = "at most 1 % late, and the goodput of the best fixed limit in hindsight, with nothing to tune"
SIGNALS = {
    "step, s": lambda one: one.policy.figures().step_seconds,
    "margin": lambda one: one.policy.figures().margin,
    "demand over capacity": lambda one: one.forecast.rate.pressure,
    "backlog, s": lambda one: one.forecast.rate.backlog,
    "waiting": lambda one: one.forecast.line.length,
    "share of the slack": lambda one: one.policy.queue.share,
    "KV margin": lambda one: one.policy.cache.preemptions.margin,
}


def make(setup: Setup) -> AdmissionController:
    sizes = setup.max_num_seqs, setup.max_num_batched_tokens
    return build_admission(AdmissionConfig(policy="lategate"), setup.slo, *sizes, min_step_tokens=setup.min_step_tokens)
