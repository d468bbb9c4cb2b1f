"""Decides what happens to open requests when their engine dies.

A request whose caller has read nothing is submitted to another engine, or to the next one,
unnoticed by the caller. A request whose caller has read something ends with one error; its stream
never mixes the tokens of two engines.
"""

from collections.abc import Awaitable, Callable

import anyio

from llmserve.engine import EnginePrompt
from llmserve.errors import EngineDead, EngineRestarted, LLMServeError
from llmserve.lifecycle.engine_pool import EnginePool, PooledEngine
from llmserve.lifecycle.manager_loop import ManagerLoop
from llmserve.lifecycle.model_limits import truncated
from llmserve.lifecycle.open_request import OpenRequest
from llmserve.lifecycle.open_requests import OpenRequests
from llmserve.lifecycle.request_state import Event, RequestState
from llmserve.request import Sampling

# Maximum number of replays. A request that was in more engines when they died may be the cause.
MAX_REPLAYS = 2


class Recovery:
    """Submits requests to the engines that they were granted to, and to others if those die.

    `move` gives a request whose engine is gone another one, if there is one.
    """

    def __init__(
        self, pool: EnginePool, open_requests: OpenRequests, loop: ManagerLoop, move: Callable[[OpenRequest], Awaitable[None]]
    ) -> None:
        self._pool = pool
        self._loop = loop
        self._open_requests = open_requests
        self._move = move
        # Why the manager itself failed, rather than its engines.
        self._defect: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """Why no request will be answered any more."""
        return self._defect or self._pool.failure

    @failure.setter
    def failure(self, error: BaseException) -> None:
        self._defect = error

    def replay_all(self) -> None:
        """Submit the requests that wait for an engine again, in tasks of the manager."""
        for open_request in self._open_requests:
            if open_request.state.now is RequestState.DETACHED:
                self._loop.spawn(self.replay, open_request)

    def engine_down(self, member: PooledEngine, error: EngineDead, unavailable: Callable[[], Exception]) -> None:
        """End the requests that were in an engine that is down, or submit them to another one.

        If no engine is up, the requests end with `unavailable()` whose patience ends before one is.
        If no engine will be started again, all that wait for one end.
        """
        over = self.failure is not None
        if not self._pool.up and not over:
            for open_request in self._open_requests:
                if open_request.gives_up_before(self._pool.back):
                    # A request that arrives now is refused too: both would wait longer than they
                    # may.
                    open_request.stream.fail(unavailable())
        for open_request in self._open_requests:
            state, mine = open_request.state, open_request.engine == member.number
            lost = state.in_engine and mine
            if lost or over or (mine and error.stalled and not open_request.stream.ended and _is_suspect(open_request)):
                open_request.stream.fail(error)
            # The stream's end may have moved the state.
            if lost and state.in_engine:
                state.process(Event.LOST)
        if self._pool.up:
            self.replay_all()

    # One request

    async def tokenize(self, open_request: OpenRequest) -> EnginePrompt:
        """Return the request's prompt. Raises InvalidRequest."""
        while True:
            member = await self._pool.wait()
            try:
                return truncated(open_request.request, await member.engine.tokenize(open_request.request), member.engine.info)
            except EngineDead as error:
                self._outlive(open_request, member, error)

    async def submit(self, open_request: OpenRequest, prompt: EnginePrompt, sampling: Sampling) -> None:
        """Return when an engine has the request.

        Raises EngineError, and EngineRestarted if too many engines died with the request in them.
        """
        open_request.prompt, open_request.sampling = prompt, sampling
        request = open_request.request
        if request.return_prompt_ids:
            open_request.stream.prompt_token_ids = prompt.token_ids
        # The engine may die, or return the last token, during its submit.
        while not (open_request.state.in_engine or open_request.stream.ended):
            member = await self._place(open_request)
            open_request.stream.replay()
            open_request.state.process(Event.SUBMIT)
            try:
                await member.engine.submit(request.request_id, prompt, sampling, request.priority, open_request.stream)
            except EngineDead as error:
                self._outlive(open_request, member, error)

    async def _place(self, open_request: OpenRequest) -> PooledEngine:
        """Return the engine that the request was granted to, or another one if that is gone."""
        while True:
            await self._pool.wait()
            member = self._pool.members[open_request.engine]
            if member.up:
                return member
            await self._move(open_request)

    async def replay(self, open_request: OpenRequest) -> None:
        """Submit a request again while its caller waits; runs in a task of the manager."""
        # The caller may have left since the engine came up.
        if open_request.state.now is not RequestState.DETACHED:
            return
        open_request.state.process(Event.REPLAY)
        open_request.entry = anyio.CancelScope()
        assert open_request.prompt is not None
        assert open_request.sampling is not None
        with self._open_requests.entering(open_request):
            try:
                await self.submit(open_request, open_request.prompt, open_request.sampling)
            except LLMServeError as error:
                open_request.stream.fail(error)

    def _outlive(self, open_request: OpenRequest, member: PooledEngine, error: EngineDead) -> None:
        """Raise the error that ends the request, if there is one."""
        fatal = self._outcome(open_request, member, error)
        if fatal is not None:
            raise fatal from error

    def outcome_after_death(self, open_request: OpenRequest, error: EngineDead) -> Exception | None:
        """Return the error that its engine's death means for a request; None if it is replayed.

        Not every engine reports its own death.
        """
        return self._outcome(open_request, self._pool.members[open_request.engine], error)

    def _outcome(self, open_request: OpenRequest, member: PooledEngine, error: EngineDead) -> Exception | None:
        self._pool.lose(member)
        if self.failure is not None or not self._pool.may_replay(member):
            return error
        if error.stalled and _is_suspect(open_request):
            return EngineRestarted(
                "the engine stalled with this request in it; it is not submitted again because its answer is constrained"
            )
        if open_request.state.in_engine and open_request.replays == MAX_REPLAYS:
            return EngineRestarted(f"the engine has died {MAX_REPLAYS + 1} times with this request in it")
        if not open_request.stream.rewind():
            return EngineRestarted("the engine died before the answer was complete, and is being restarted")
        if open_request.state.in_engine:
            open_request.state.process(Event.LOST)
            open_request.replays += 1
        if self._pool.up and open_request.constraint is None and open_request.state.now is RequestState.DETACHED:
            # Another engine takes it now, while the remains of its own are removed. A constrained
            # request waits for the reason of the death: it may be the cause.
            self._loop.spawn(self.replay, open_request)
        return None


def _is_suspect(open_request: OpenRequest) -> bool:
    """Whether the request's constraint may have stalled the engine, and would stall the next one.

    A request that the engine has already returned counts too: some engines report their own death
    without its cause.
    """
    return open_request.constraint is not None and (open_request.state.in_engine or open_request.replays > 0)
