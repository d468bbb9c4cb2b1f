"""What one open request holds in a manager, and how its end is named."""

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
    """One request's belongings, each to be given back exactly once.

    Attributes:
        entry: the scope of everything before the caller holds the stream; cancelled when the request ends in there.
        watch: of its deadline, where it has one.
        span: its part of a trace.
        in_engine: the engine may hold it, so an abort is owed.
        entered: the caller holds the stream, or entering has unwound.
        settled: what it holds is being given back, or has been; `released` when that is done.
        prompt, sampling: as the engine was given them, so that another one can be; `replays` says how often that was, and
            `replaying` is the scope of the task that does it.
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
        """What the engine holds its answer to: the request's own schema or grammar, or that of the tools which it forces."""
        forced = None if self.prompt is None else self.prompt.constraint
        return forced or self.request.sampling.structured_outputs

    def gives_up_before(self, time: float) -> bool:
        """Whether it waits in line, and its patience ends before that. One that may be served late has no such end."""
        ticket = self.ticket
        return ticket is not None and ticket.state is TicketState.WAITING and ticket.expires < time and not ticket.best_effort


def arrival(request: GenerationRequest, now: float, info: Callable[[], EngineInfo]) -> Timeline:
    """A request's timeline when it arrives, which `on_arrival` gets. `info` may raise RuntimeError before the engine has been up."""
    adapter = None
    if request.adapter is not None:
        with suppress(RuntimeError):
            adapter = request.adapter if request.adapter in info().adapters else None
    timeline = Timeline(request_id=request.request_id, tenant=request.tenant, adapter=adapter, arrived=now)
    if request.on_arrival is not None:
        request.on_arrival(timeline)
    return timeline


def check_type(request: object) -> None:
    """Raises TypeError for what is no request, before anything is held or counted for it."""
    if not isinstance(request, GenerationRequest):
        raise wrong_type("request", "a GenerationRequest", request)


def note_outcome(timeline: Timeline, error: BaseException | None) -> None:
    """Name the end of a request by what ended it, None being completion; the first end counts."""
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
            # The caller's own error inside the `async with`: it left early.
            timeline.outcome, timeline.reason = Outcome.CANCELLED, "abandoned"
        case _:
            timeline.outcome, timeline.reason = Outcome.CANCELLED, "task_cancelled"


def interrupter(stream: TokenStream) -> Callable[[str], None]:
    """What a cancellation token calls: ends the stream at once in this thread, through the event loop from another one."""
    home, loop = threading.get_ident(), anyio.lowlevel.current_token()

    def interrupt(reason: str) -> None:
        error = RequestCancelled(reason)
        if threading.get_ident() == home:
            stream.fail(error)
            return
        # When the loop is gone, so is the request.
        with suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(stream.fail, error, token=loop)

    return interrupt
