"""The state of one open request in a manager, and the name of its outcome."""

import threading
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.from_thread
import anyio.lowlevel
import attrs

from llmserve.admission import Ticket, TicketState
from llmserve.engine import EngineInfo, EnginePrompt
from llmserve.errors import DeadlineExceeded, EngineError, InvalidRequest, Overloaded, RequestCancelled
from llmserve.lifecycle.deadlines import Watch
from llmserve.lifecycle.stream import TokenStream
from llmserve.request import GenerationRequest, Outcome, Sampling, Timeline
from llmserve.structured import StructuredOutputs
from llmserve.tracing import NoTracer, Span
from llmserve.validation.bounds import wrong_type


@attrs.define(eq=False, kw_only=True)
class OpenRequest:
    """What a manager holds for one request; each part is released exactly once.

    Attributes:
        entry: Scope of everything before the caller holds the stream; cancelled if the request ends
            in that time.
        watch: The watch of its deadline, if it has one.
        span: Its part of a trace.
        in_engine: Whether the engine may hold the request, so that it must be aborted.
        entered: Whether the caller holds the stream, or entering has unwound.
        settled: Whether its release has begun; `released` is set when the release is complete.
        prompt, sampling: What the engine got, so that the next engine can get it too.
        replays: How often the request was submitted again.
        replaying: Scope of the task that submits it again.
    """

    request: GenerationRequest
    timeline: Timeline
    stream: TokenStream = attrs.field(init=False)
    entry: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    watch: Watch | None = None
    ticket: Ticket | None = None
    span: Span = attrs.field(factory=NoTracer)
    in_engine: bool = False
    entered: bool = False
    settled: bool = False
    released: anyio.Event = attrs.field(factory=anyio.Event)
    unlink: Callable[[], None] = lambda: None
    prompt: EnginePrompt | None = None
    sampling: Sampling | None = None
    replays: int = 0
    replaying: anyio.CancelScope | None = None

    @property
    def constraint(self) -> StructuredOutputs | None:
        """The constraint that the engine enforces: the forced tools' or the request's own."""
        forced = None if self.prompt is None else self.prompt.constraint
        return forced or self.request.sampling.structured_outputs

    def gives_up_before(self, time: float) -> bool:
        """Whether the request waits in the queue and its patience ends before `time`.

        This is False for best-effort requests, which may be served late.
        """
        ticket = self.ticket
        return ticket is not None and ticket.state is TicketState.WAITING and ticket.expires < time and not ticket.best_effort


def arrival(request: GenerationRequest, now: float, info: Callable[[], EngineInfo]) -> Timeline:
    """Create a request's timeline on arrival and pass it to `on_arrival`.

    `info` may raise RuntimeError before the engine has been up.
    """
    adapter = None
    if request.adapter is not None:
        with suppress(RuntimeError):
            adapter = request.adapter if request.adapter in info().adapters else None
    timeline = Timeline(request_id=request.request_id, tenant=request.tenant, adapter=adapter, arrived=now)
    if request.on_arrival is not None:
        request.on_arrival(timeline)
    return timeline


def check_type(request: object) -> None:
    """Raise TypeError if the object is not a request, before anything is held or counted for it."""
    if not isinstance(request, GenerationRequest):
        raise wrong_type("request", "a GenerationRequest", request)


def note_outcome(timeline: Timeline, error: BaseException | None) -> None:
    """Set the outcome from what ended the request; None means completion. The first end counts."""
    if timeline.outcome is not None:
        return
    match error:
        case None:
            timeline.outcome = Outcome.COMPLETED
        case InvalidRequest():
            timeline.outcome = Outcome.INVALID
        case Overloaded() if timeline.admitted is None:
            timeline.outcome, timeline.reason = Outcome.REFUSED, error.reason
        case Overloaded():
            timeline.outcome, timeline.reason = Outcome.CANCELLED, error.reason
        case DeadlineExceeded():
            timeline.outcome = Outcome.DEADLINE
        case RequestCancelled():
            timeline.outcome = Outcome.CANCELLED
        case EngineError():
            timeline.outcome = Outcome.FAILED
        case Exception():
            # The caller's own error inside the `async with`: the caller left early.
            timeline.outcome, timeline.reason = Outcome.CANCELLED, "abandoned"
        case _:
            timeline.outcome, timeline.reason = Outcome.CANCELLED, "task_cancelled"


def interrupter(stream: TokenStream) -> Callable[[str], None]:
    """Return a token's callback that ends the stream.

    It acts at once in this thread, and through the event loop in other threads.
    """
    home, loop = threading.get_ident(), anyio.lowlevel.current_token()

    def interrupt(reason: str) -> None:
        error = RequestCancelled(reason)
        if threading.get_ident() == home:
            stream.fail(error)
            return
        # If the loop has ended, so has the request.
        with suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(stream.fail, error, token=loop)

    return interrupt
