"""No admission control: the engine queues everything."""

from benchmarks.stand_ins.contender import Setup
from llmserve.admission import AdmissionController, Unlimited

SOURCE, URL = "vLLM without flags", "https://docs.vllm.ai"
HEADLINE = "none; the default"
SIGNALS = {"requests in the engine": lambda one: one.running_on(0)}


def make(setup: Setup) -> AdmissionController:
    return AdmissionController(Unlimited())
