"""The lines that a server program logs from its start to its end."""

from collections.abc import Iterable

from frontends.access.exposure import VLLM_FLOOR, advisories_for, below_floor
from frontends.logs.operator_log import say
from frontends.program.settings import EngineSettings
from llmserve import EngineInfo, State
from llmserve.admission import AdmissionStatistics

# Log lines for changes of the engine's state.
CHANGES = {
    State.RESTARTING: "restarting the engine died; new requests are refused until it has restarted",
    State.READY: "ready     again",
    State.FAILED: "failed    the engine died and will not be restarted",
}


def announce(addresses: Iterable[str], engine: EngineSettings) -> None:
    for address in addresses:
        say(f"listening {address}")
    found = engine.spec.version()
    if found is not None and below_floor(found):
        names = ", ".join(one.id for one in advisories_for("vllm", found))
        say(f"advisory  vLLM {found} is older than {VLLM_FLOOR}; known vulnerabilities: {names or 'none'} (SECURITY.md)")
    say(f"model     {engine.model}, served as {engine.name!r}; requests are refused until it is loaded")


def describe_engine(info: EngineInfo) -> str:
    cache = f", KV cache for {info.kv_cache_tokens:,} tokens" if info.kv_cache_tokens else ""
    return f"{info.name} {info.version} on {info.device}: context {info.max_model_len:,}, batch {info.max_num_seqs}{cache}"


def say_leaving(seconds: float) -> None:
    say(f"leaving   for {seconds:g} s requests are still served and readiness returns 503; a second signal cancels open requests")


def say_ready(admission: AdmissionStatistics) -> None:
    running = "no limit of running requests" if admission.limit is None else f"at most {admission.limit} running"
    say(f"admission {admission.policy}: {running}, {admission.max_waiting} waiting")
    say("ready     Ctrl-C or SIGTERM drains and stops")
