"""The supervisor's side of admission: one worker's tickets at the controller for all workers."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import attrs

from frontends.workers.messages import Declined, FirstToken, Granted, Leave, Move, Offer
from llmserve.admission import AdmissionController, Refused, Ticket, TicketState, wake

# Seconds until a worker is told that a request stays at its engine.
MOVE_SECONDS = 0.1
# Minimum seconds until a ticket is asked again whether its patience is over: without an engine, it
# does not run out.
ASK_SECONDS = 1.0


@attrs.define
class AdmissionServer:
    """The admission of one worker's requests.

    Attributes:
        send: sends messages to the worker.
        home: the engine that its requests prefer, of several; None without a preference.
    """

    controller: AdmissionController
    send: Callable[[Any], None]
    loop: asyncio.AbstractEventLoop
    home: int | None = None
    _tickets: dict[int, Ticket] = attrs.field(factory=dict, init=False)
    _patience: dict[int, asyncio.TimerHandle] = attrs.field(factory=dict, init=False)

    def receive(self, message: Offer | FirstToken | Leave | Move) -> None:
        match message:
            case Offer():
                self._offer(message)
            case FirstToken():
                self._first_token(message.number)
            case Move():
                self._move(message.number)
            case Leave():
                self._leave(message.number, message.generated, complete=message.complete)

    def _offer(self, message: Offer) -> None:
        number = message.number
        ticket = Ticket(
            request_id=message.request_id,
            tenant=message.tenant,
            priority=message.priority,
            prompt_tokens=message.prompt_tokens,
            max_tokens=message.max_tokens,
            arrived=message.arrived,
            deadline=math.inf if message.deadline is None else message.deadline,
            best_effort=message.best_effort,
            prefix=message.prefix,
            home=self.home,
            wake=lambda: self._over(number),
        )
        refused = self.controller.offer(ticket, self.loop.time())
        if refused is not None:
            self._declined(number, refused)
            return
        self._tickets[number] = ticket
        if ticket.state is TicketState.RUNNING:
            self.send(Granted(number, ticket.engine))
        else:
            self._wait(number, ticket.expires)

    def _first_token(self, number: int) -> None:
        ticket = self._tickets.get(number)
        if ticket is not None:
            wake(self.controller.first_token(ticket, self.loop.time()))

    def _leave(self, number: int, generated: int = 0, *, complete: bool = False) -> None:
        """Remove a ticket, unless it has been refused since."""
        ticket = self._tickets.pop(number, None)
        self._calm(number)
        if ticket is not None:
            ticket.generated, ticket.complete = generated, complete
            wake(self.controller.leave(ticket, self.loop.time()))

    def _move(self, number: int) -> None:
        ticket = self._tickets.get(number)
        if ticket is None:
            return
        before = ticket.engine
        self.controller.move(ticket, self.loop.time())
        if ticket.engine != before:
            self.send(Granted(number, ticket.engine))
        else:
            # The worker has lost its engine before this process knows of it, or has no place there
            # yet. It asks again if that has not changed.
            self.loop.call_later(MOVE_SECONDS, self.send, Granted(number, before))

    def close(self) -> list[tuple[int, str]]:
        """Remove all tickets of a worker that has ended; return the engines and ids of its running requests."""
        running = [(ticket.engine, ticket.request_id) for ticket in self._tickets.values() if ticket.state is TicketState.RUNNING]
        for number in list(self._tickets):
            self._leave(number)
        return running

    def _over(self, number: int) -> None:
        """Send the decision on a ticket whose wait is over."""
        self._calm(number)
        refused = self._tickets[number].refused
        if refused is None:
            self.send(Granted(number, self._tickets[number].engine))
        else:
            del self._tickets[number]
            self._declined(number, refused)

    def _wait(self, number: int, until: float) -> None:
        if until < math.inf:
            self._patience[number] = self.loop.call_at(until, self._give_up, number)

    def _give_up(self, number: int) -> None:
        ticket = self._tickets[number]
        del self._patience[number]
        now = self.loop.time()
        refused, woken = self.controller.give_up(ticket, now)
        if refused is None:
            self._wait(number, now + ASK_SECONDS if ticket.expires <= now else ticket.expires)
        else:
            del self._tickets[number]
            self._declined(number, refused)
        wake(woken)

    def _declined(self, number: int, refused: Refused) -> None:
        self.send(Declined(number, refused.reason, refused.retry_after))

    def _calm(self, number: int) -> None:
        timer = self._patience.pop(number, None)
        if timer is not None:
            timer.cancel()
