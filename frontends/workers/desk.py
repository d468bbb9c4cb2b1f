"""The owner's side of admission: one worker's tickets at the controller that decides for all workers."""

import asyncio
from collections.abc import Callable
from typing import Any

import attrs

from frontends.workers.messages import Declined, Granted, Offer
from llmserve.admission import AdmissionController, Refused, Ticket, TicketState, wake


@attrs.define
class Desk:
    """Made for one worker and closed at its end; `send` brings messages to it."""

    controller: AdmissionController
    send: Callable[[Any], None]
    loop: asyncio.AbstractEventLoop
    _tickets: dict[int, Ticket] = attrs.field(factory=dict, init=False)
    _patience: dict[int, asyncio.TimerHandle] = attrs.field(factory=dict, init=False)

    def offer(self, message: Offer) -> None:
        number = message.number
        ticket = Ticket(request_id=message.request_id, tenant=message.tenant, priority=message.priority, wake=lambda: self._granted(number))
        refused = self.controller.offer(ticket, self.loop.time())
        if refused is not None:
            self._declined(number, refused)
            return
        self._tickets[number] = ticket
        if ticket.state is TicketState.RUNNING:
            self.send(Granted(number))
        elif self.controller.max_wait is not None:
            self._patience[number] = self.loop.call_later(self.controller.max_wait, self._give_up, number)

    def leave(self, number: int) -> None:
        """A ticket that was refused meanwhile is not known any more."""
        ticket = self._tickets.pop(number, None)
        self._calm(number)
        if ticket is not None:
            wake(self.controller.leave(ticket, self.loop.time()))

    def close(self) -> list[str]:
        """Give everything back; returns the ids of the requests that ran."""
        running = [ticket.request_id for ticket in self._tickets.values() if ticket.state is TicketState.RUNNING]
        for number in list(self._tickets):
            self.leave(number)
        return running

    def _granted(self, number: int) -> None:
        self._calm(number)
        self.send(Granted(number))

    def _give_up(self, number: int) -> None:
        ticket = self._tickets.pop(number)
        del self._patience[number]
        refused, woken = self.controller.give_up(ticket, self.loop.time())
        wake(woken)
        self._declined(number, refused)

    def _declined(self, number: int, refused: Refused) -> None:
        self.send(Declined(number, refused.reason, refused.retry_after))

    def _calm(self, number: int) -> None:
        timer = self._patience.pop(number, None)
        if timer is not None:
            timer.cancel()
