"""The lines that a server program logs from its start to its end."""

from collections.abc import Iterable, Sequence

from frontends.access.exposure import VLLM_FLOOR, advisories_for, below_floor
from frontends.logs.operator_log import say
from frontends.program.settings import EngineSettings
from llmserve import EngineInfo, State
from llmserve.admission import AdmissionStatistics
from llmserve.state import EngineState, ManagerStatistics

# Log lines for changes of the engine's state.
CHANGES = {
    State.RESTARTING: "restarting the engine died; new requests are refused until it has restarted",
    State.READY: "ready     again",
    State.FAILED: "failed    the engine died and will not be restarted",
}


def engine_is_gone(number: int, up: int, count: int, *, for_good: bool) -> str:
    """Return the log line for the death of an engine, while `up` of `count` engines serve."""
    if count == 1 and not for_good:
        return CHANGES[State.RESTARTING]
    what = "is down and will not be restarted" if for_good else "is down and is being restarted"
    return f"engine    engine {number} {what}; {up} of {count} engines serve"


def engine_is_back(number: int, up: int, count: int) -> str:
    """Return the log line for an engine that has been restarted."""
    return CHANGES[State.READY] if count == 1 else f"engine    engine {number} is up again; {up} of {count} engines serve"


def engine_leaves(number: int) -> str:
    """Return the log line for the begin of an engine's restart on request."""
    return f"restarting engine {number} on request; it first ends its requests"


def say_changes(before: ManagerStatistics, now: ManagerStatistics) -> None:
    """Log the changes of the state, or of single engines."""
    on_request = any(engine.drains for engine in now.engines)
    if now.state is not before.state and not (on_request and now.state is State.RESTARTING):
        say(CHANGES.get(now.state, f"state     {now.state}"))
    elif on_request or len(now.engines) > 1:
        _say_engines(before.engines, now.engines)


def _say_engines(before: Sequence[EngineState], now: Sequence[EngineState]) -> None:
    up, count = sum(engine.up for engine in now), len(now)
    for number, (was, engine) in enumerate(zip(before, now, strict=True)):
        if engine.up and not was.up:
            say(engine_is_back(number, up, count))
        elif engine.drains and not was.drains:
            say(engine_leaves(number))
        elif engine.failed > was.failed or (was.up and not engine.up):
            say(engine_is_gone(number, up, count, for_good=engine.failed))


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
