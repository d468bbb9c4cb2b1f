"""The states of one open request, and the events that lead from one to another.

A state is two facts. The first is how far the request is: a task takes it to the engine, the caller
holds its stream, its release has begun, or it is released. The second is whether the engine may
hold it. Only this module writes the state; an event that its table does not have raises.
"""

from enum import StrEnum, auto


class RequestState(StrEnum):
    """Where an open request is.

    Attributes:
        ENTERING: A task takes it to the engine, which does not hold it: the caller's task, or after
            the engine's death a task of the manager.
        SUBMITTING: That task has begun the submit, so the engine may hold it.
        RUNNING: The caller holds the stream, and the engine may hold the request.
        DETACHED: The caller holds the stream, and no engine holds the request: it has its last
            token, or waits for the next engine.
        ABORTING: Its release has begun, and the engine may hold it.
        SETTLED: Its release has begun, and no engine holds it.
        RELEASED: It holds nothing.
    """

    ENTERING = auto()
    SUBMITTING = auto()
    RUNNING = auto()
    DETACHED = auto()
    ABORTING = auto()
    SETTLED = auto()
    RELEASED = auto()


class Event(StrEnum):
    """What happens to an open request.

    Attributes:
        SUBMIT: `Engine.submit()` is about to be called. A submit that is cancelled half-way may
            have left the request in the engine, so this comes first.
        ENTERED: The task that took it to the engine has ended, with or without success.
        FINISHED: The engine has returned its last token.
        LOST: The engine that held it has died.
        REPLAY: A task begins to take it to the next engine.
        SETTLE: Its release begins.
        ABORTED: The abort has ended; the engine holds it no longer, or does not answer.
        RELEASE: Its release is complete.
    """

    SUBMIT = auto()
    ENTERED = auto()
    FINISHED = auto()
    LOST = auto()
    REPLAY = auto()
    SETTLE = auto()
    ABORTED = auto()
    RELEASE = auto()


_S = RequestState

TRANSITIONS: dict[Event, dict[RequestState, RequestState]] = {
    Event.SUBMIT: {_S.ENTERING: _S.SUBMITTING},
    Event.ENTERED: {_S.ENTERING: _S.DETACHED, _S.SUBMITTING: _S.RUNNING},
    Event.FINISHED: {_S.SUBMITTING: _S.ENTERING, _S.RUNNING: _S.DETACHED},
    Event.LOST: {_S.SUBMITTING: _S.ENTERING, _S.RUNNING: _S.DETACHED, _S.ABORTING: _S.SETTLED},
    Event.REPLAY: {_S.DETACHED: _S.ENTERING},
    Event.SETTLE: {_S.DETACHED: _S.SETTLED, _S.RUNNING: _S.ABORTING},
    # The engine may die during the abort.
    Event.ABORTED: {_S.ABORTING: _S.SETTLED, _S.SETTLED: _S.SETTLED},
    Event.RELEASE: {_S.SETTLED: _S.RELEASED},
}

# The engine may hold the request, so that its end needs an abort.
IN_ENGINE = frozenset({_S.SUBMITTING, _S.RUNNING, _S.ABORTING})
# A task takes the request to the engine. An end cancels that task; the release follows.
ON_THE_WAY = frozenset({_S.ENTERING, _S.SUBMITTING})


class IllegalTransition(RuntimeError):
    """An event that is illegal in the request's state: a defect of llmserve."""


class StateMachine:
    """The state of one request."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = RequestState.ENTERING

    def __repr__(self) -> str:
        return f"<{self._now.name}>"

    @property
    def now(self) -> RequestState:
        return self._now

    @property
    def in_engine(self) -> bool:
        """Whether the engine may hold the request."""
        return self._now in IN_ENGINE

    @property
    def on_the_way(self) -> bool:
        """Whether a task is taking the request to the engine."""
        return self._now in ON_THE_WAY

    def process(self, event: Event) -> None:
        """Go to the state after the event. Raises IllegalTransition, and the state stays."""
        transitions = TRANSITIONS[event]
        if self._now not in transitions:
            legal = ", ".join(f"{before.name} to {after.name}" for before, after in transitions.items())
            raise IllegalTransition(f"{event.name} is illegal in the state {self._now.name}: it leads from {legal}")
        self._now = transitions[self._now]
