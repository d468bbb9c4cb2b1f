"""The manager's side of admission: passes it requests, figures and the time, and waits for slots."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio
import anyio.lowlevel

from llmserve.admission import (
    Admission,
    AdmissionController,
    AdmissionStatistics,
    Policy,
    Ticket,
    TicketState,
    build_admission,
    separate,
    step_tokens,
    wake,
)
from llmserve.admission.pool.policy import PoolPolicy
from llmserve.admission.pool.prefixes import prefix_keys
from llmserve.config import ManagerConfig, TenantTable
from llmserve.engine import Engine, EngineInfo, EnginePrompt, LimitsSteps
from llmserve.errors import ConfigurationError
from llmserve.lifecycle.manager_loop import ManagerLoop
from llmserve.lifecycle.open_request import OpenRequest
from llmserve.lifecycle.slo_check import engine_facts
from llmserve.request import Outcome, Sampling

logger = logging.getLogger(__name__)


class AdmissionDriver:
    """Drives an `Admission`, which has no clock and no event loop.

    `policy` is the caller's own policy, if there is one. `admission` is None until `build()` makes
    it from the engine's figures.
    """

    def __init__(
        self,
        admission: Admission | Policy | None,
        config: ManagerConfig,
        engines: Sequence[Engine],
        info: Callable[[], EngineInfo],
        loop: ManagerLoop,
    ) -> None:
        self.admission, self.policy = separate(admission, config.admission)
        if isinstance(self.admission, AdmissionController):
            policy = self.admission.policy
            count = len(policy.members) if isinstance(policy, PoolPolicy) else 1
            if count != len(engines):
                raise ConfigurationError(f"admission= is for {count} of {len(engines)} engines: pass a policy instead")
        self._builds = self.admission is None
        self._engines = engines
        self._info = info
        self._loop = loop
        chosen = self.admission.policy if isinstance(self.admission, AdmissionController) else self.policy
        wanted = hasattr(chosen, "step_tokens") if chosen is not None else self._builds and config.limits_steps
        # The engines whose steps the policy may limit, by their numbers.
        self._limited = {number: engine for number, engine in enumerate(engines) if wanted and isinstance(engine, LimitsSteps)}
        for engine in self._limited.values():
            engine.allow_step_limit()

    def build(self, config: ManagerConfig) -> None:
        if self.admission is None:
            self.admission = self._build(config)

    def _build(self, config: ManagerConfig) -> AdmissionController:
        info, count = self._info(), len(self._engines)
        sizes = info.max_num_seqs, info.max_num_batched_tokens
        return build_admission(config.admission, config.slo, *sizes, self.policy, count, self._min_step_tokens())

    def _min_step_tokens(self) -> int | None:
        """Return the smallest maximum of tokens in a step that every engine accepts; None if one accepts none."""
        found: list[int | None] = []
        for engine in self._engines:
            # An engine that has not been up yet is like the others.
            with suppress(RuntimeError):
                found.append(engine.info.min_step_tokens)
        numbers = [number for number in found if number is not None]
        return max(numbers) if numbers and len(numbers) == len(found) else None

    @property
    def built(self) -> Admission:
        """The admission. Raises RuntimeError before `build()`."""
        if self.admission is None:
            raise RuntimeError("the manager has not been started")
        return self.admission

    # One request

    def screen(self, open_request: OpenRequest) -> Ticket:
        """Refuse what admission refuses at any prompt length, before tokenising the prompt."""
        request = open_request.request
        ticket = open_request.ticket = Ticket(
            request_id=request.request_id,
            tenant=request.tenant,
            priority=request.priority,
            arrived=open_request.timeline.arrived,
            deadline=open_request.deadline,
            best_effort=request.best_effort,
        )
        refused = self.built.screen(ticket, self._loop.now())
        if refused is not None:
            raise refused.error(request.tenant)
        return ticket

    async def admit(
        self,
        open_request: OpenRequest,
        ticket: Ticket,
        prompt: EnginePrompt,
        sampling: Sampling,
        engine_up: Callable[[], Awaitable[object]],
    ) -> None:
        """Return when the request may run. Raises Overloaded. `engine_up` waits for an engine."""
        admission, now = self.built, self._loop.now
        ticket.prompt_tokens, ticket.max_tokens = open_request.timeline.prompt_tokens, 0 if prompt.pooling else sampling.max_tokens
        if len(self._engines) > 1 and self._info().prefix_caching:
            ticket.prefix = prefix_keys(prompt.token_ids, f"{prompt.adapter} {prompt.cache_salt} {prompt.images_key}")
        refused = admission.offer(ticket, now())
        if ticket.state is TicketState.WAITING:
            granted = anyio.Event()
            ticket.wake = granted.set
        # The loop repeats only for a best-effort request: it first gives up its position among the
        # requests with an SLO.
        while ticket.state is TicketState.WAITING:
            with anyio.move_on_after(max(0.0, ticket.expires - now())):
                await granted.wait()
            # Patience does not run out while there is no engine.
            await engine_up()
            # The ticket decides, not the scope: the slot may arrive at the very moment at which
            # patience runs out.
            refused = ticket.refused
            if ticket.state is TicketState.WAITING:
                refused, woken = admission.give_up(ticket, now())
                wake(woken)
        if refused is not None:
            raise refused.error(open_request.request.tenant)
        open_request.timeline.admitted = ticket.granted

    async def move(self, open_request: OpenRequest) -> None:
        """Give a request whose engine is gone another engine."""
        ticket = open_request.ticket
        assert ticket is not None
        moved = anyio.Event()
        ticket.wake = moved.set
        self.built.move(ticket, self._loop.now())
        if ticket.state is TicketState.WAITING:
            await moved.wait()
        await anyio.lowlevel.checkpoint()

    def first_token(self, open_request: OpenRequest) -> None:
        if open_request.ticket is not None:
            wake(self.built.first_token(open_request.ticket, self._loop.now()))

    def leave(self, open_request: OpenRequest) -> None:
        """Return the request's slot, or its place in the queue."""
        ticket, timeline = open_request.ticket, open_request.timeline
        if ticket is not None:
            ticket.generated, ticket.complete = timeline.completion_tokens, timeline.outcome is Outcome.COMPLETED
            wake(self.built.leave(ticket, self._loop.now()))

    # The engines, by their numbers

    def stepped(self, number: int) -> None:
        """Pass on an engine's figures after a step."""
        if self.admission is None:
            return
        engine = self._engines[number]
        try:
            wake(self.admission.record(engine_facts(engine.statistics(), engine.info, number), self._loop.now()))
            self._limit_step(number)
        except Exception:
            # This runs in the engine's own loop, and vLLM's loop would not survive an exception.
            logger.exception("admission failed to process the engine's statistics")

    def _limit_step(self, number: int) -> None:
        """Give an engine the maximum of tokens in a step that the policy has found for it."""
        if isinstance(self.admission, AdmissionController):
            tokens = step_tokens(self.admission.policy, number)
            if tokens is not None and number in self._limited:
                self._limited[number].limit_step(tokens)

    def engine_up(self, number: int) -> None:
        if self.admission is not None:
            wake(self.admission.resume(self._loop.now(), number))

    def engine_down(self, number: int) -> None:
        if self.admission is not None:
            self.admission.suspend(self._loop.now(), number)

    # The operator

    def reconfigure(self, config: ManagerConfig) -> None:
        """Give the admission other limits; the caller's own admission gets the tenants only.

        Raises ConfigurationError, and then changes nothing.
        """
        if self._builds and isinstance(self.admission, AdmissionController):
            wake(self.admission.adopt(self._build(config), self._loop.now()))
        else:
            self.set_tenants(config.admission.table)

    def set_tenants(self, table: TenantTable) -> None:
        if self.admission is not None:
            self.admission.set_tenants(table)

    def statistics(self) -> AdmissionStatistics | None:
        return self.admission.statistics(self._loop.now()) if self.admission is not None else None
