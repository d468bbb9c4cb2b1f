"""The states of a manager, and a snapshot of its figures."""

from enum import StrEnum

import attrs

from llmserve.admission import AdmissionStatistics, Refusal
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.engine import EngineStatistics
from llmserve.errors import Unavailable

STARTING = "the engine is starting"


class State(StrEnum):
    """The state of a manager. It accepts requests only in READY."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


@attrs.frozen(kw_only=True)
class EngineState:
    """One engine of a manager: whether it accepts requests, its restarts, and its own figures.

    `drains` says that it is being restarted on request, and `failed` that it will not be started
    again.
    """

    up: bool
    drains: bool = False
    failed: bool = False
    restarts: int
    engine: EngineStatistics


@attrs.frozen(kw_only=True)
class ManagerStatistics:
    """A snapshot of a manager.

    `open` counts requests from their arrival until they have released everything. `restarts` counts
    restarts of all engines. `engine` has the figures of all engines together, and `engines` those
    of each, by its number.
    """

    state: State
    restarts: int = 0
    open: int
    tokenizing: int
    admission: AdmissionStatistics | None
    engine: EngineStatistics
    engines: tuple[EngineState, ...] = ()

    @property
    def running(self) -> int:
        return self.admission.running if self.admission else 0

    @property
    def waiting(self) -> int:
        return self.admission.waiting if self.admission else 0

    @property
    def free_slots(self) -> int | None:
        """Number of free slots, or None if the policy has no limit."""
        if self.admission is None:
            return 0
        return None if self.admission.limit is None else max(0, self.admission.limit - self.admission.running)


class NotRunning(Unavailable, RuntimeError):
    """The embedding program uses a manager that is not started, or is closed.

    `public` is the message for a server's clients.
    """

    def __init__(self, message: str, public: str, reason: Refusal) -> None:
        super().__init__(message, retry_after=RETRY_AFTER[reason], reason=reason)
        self.public = public


def unavailable(state: State, retry_after: float | None = None) -> Unavailable:
    """Return the error for a request that arrives in a state other than READY."""
    if state is State.RESTARTING:
        return Unavailable(
            "the engine is being restarted",
            retry_after=RETRY_AFTER[Refusal.RESTARTING] if retry_after is None else retry_after,
            reason=Refusal.RESTARTING,
        )
    if state is State.NEW:
        message = "the manager has not been started: use it inside `async with manager:`, or call `await manager.start()` first"
        return NotRunning(message, STARTING, Refusal.STARTING)
    if state is State.STARTING:
        return Unavailable(STARTING, retry_after=RETRY_AFTER[Refusal.STARTING], reason=Refusal.STARTING)
    if state is State.DRAINING:
        return Unavailable("the server is shutting down", retry_after=RETRY_AFTER[Refusal.DRAINING], reason=Refusal.DRAINING)
    message = "the manager has been closed: a manager starts once, so make another EngineManager"
    return NotRunning(message, "the server has stopped", Refusal.STOPPED)
