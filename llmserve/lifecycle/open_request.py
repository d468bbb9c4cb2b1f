"""What a manager holds for one open request, and the name of the request's outcome."""

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
from llmserve.lifecycle.request_state import StateMachine
from llmserve.lifecycle.stream import TokenStream
from llmserve.request import GenerationRequest, Outcome, Sampling, Timeline
from llmserve.structured import StructuredOutputs
from llmserve.tracing import NoTracer, Span
from llmserve.validation.bounds import wrong_type


@attrs.define(eq=False, kw_only=True)
class OpenRequest:
    """What a manager holds for one request; each part is released exactly once.

    Attributes:
        deadline: When it must have ended, in monotonic seconds; the caller's token may end it sooner.
        state: Where it is on its way.
        entry: Scope of the task that takes it to the engine; cancelled if it ends in that time.
        watch: The watch of its deadline, if it has one.
        span: Its part of a trace.
        released: Set when the release is complete; exists only if the caller waits for that.
        prompt, sampling: What the engine got, so that the next engine can get it too.
        replays: How often the request was submitted again.
    """

    request: GenerationRequest
    timeline: Timeline
    deadline: float
    state: StateMachine = attrs.field(factory=StateMachine, init=False)
    stream: TokenStream = attrs.field(init=False)
    entry: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    watch: Watch | None = None
    ticket: Ticket | None = None
    span: Span = attrs.field(factory=NoTracer)
    released: anyio.Event | None = None
    unlink: Callable[[], None] = lambda: None
    prompt: EnginePrompt | None = None
    sampling: Sampling | None = None
    replays: int = 0

    @property
    def engine(self) -> int:
        """The number of the engine that the request was granted to; 0 before that."""
        return 0 if self.ticket is None else self.ticket.engine

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
