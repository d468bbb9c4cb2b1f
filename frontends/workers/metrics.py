"""What all workers have counted, put together."""

import asyncio
import itertools
import pickle
from collections.abc import Callable, Sequence

import anyio

from frontends.workers.handle import Member
from frontends.workers.messages import Ask, Report
from llmserve import Facts
from llmserve.admission import AdmissionStatistics

# A worker that does not tell its figures within this time is counted with its last ones.
REPORT_SECONDS = 1.0


class Gathering:
    """Asks the workers, and remembers what those that are gone have said last."""

    def __init__(self) -> None:
        self._past: list[Facts] = []
        self._numbers = itertools.count(1)
        self._reports: dict[int, asyncio.Event] = {}

    async def gather(
        self, members: Sequence[Member], admission: Callable[[], AdmissionStatistics | None], *, one_engine: bool
    ) -> Facts | None:
        """None if no worker has ever reported. `admission` is asked when the reports are there: what a worker said before its own is
        then in both."""
        async with anyio.create_task_group() as tasks:
            for member in members:
                tasks.start_soon(self._ask, member)
        parts = [member.facts for member in members if member.facts is not None]
        return Facts.together([*parts, *self._past], admission(), one_engine=one_engine) if parts else None

    async def _ask(self, member: Member) -> None:
        number = next(self._numbers)
        answered = self._reports[number] = asyncio.Event()
        member.channel.send(Ask(number))
        with anyio.move_on_after(REPORT_SECONDS):
            await answered.wait()
        self._reports.pop(number, None)

    def receive(self, member: Member, report: Report) -> None:
        member.facts = pickle.loads(report.facts)  # noqa: S301 - from a process that this one started
        if report.number in self._reports:
            self._reports.pop(report.number).set()

    def forget(self, member: Member) -> None:
        """It is gone; what it has counted is not."""
        if member.facts is not None:
            self._past.append(member.facts.ended())
