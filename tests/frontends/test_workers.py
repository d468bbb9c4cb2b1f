"""Several workers on one port as a program, and their admission in memory."""

import json
import re
import signal
import sys
import types
from collections import deque
from contextlib import suppress
from typing import Any

import anyio
import psutil
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from program_support import MODULE, Streams, connections, fetch, metrics, program, read_to_end_of_answer, until, workers_of

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.aiohttp_app import choose_workers
from frontends.workers import watchdog
from frontends.workers.admission_client import AdmissionClient
from frontends.workers.admission_server import AdmissionServer
from frontends.workers.messages import StepCount
from frontends.workers.step_totals import StepAggregator
from llmserve import SLO, AdmissionConfig
from llmserve.admission import AdmissionController, FixedLimit, Ticket, TicketState, build_admission, wake

SLOW = ("--engine-arg", "step_seconds=0.02")


def serving(tmp_path, *arguments):
    return program(tmp_path, "--workers", "2", *arguments)


async def test_they_answer_alike_and_count_together(tmp_path):
    async with serving(tmp_path) as (process, url, lines):
        assert any(", 2 workers" in line for line in lines)
        for _ in range(6):
            status, body = await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 3, "ignore_eos": True})
            assert status == 200
            assert json.loads(body)["usage"]["completion_tokens"] == 3
        found = await metrics(url)
        assert found["requests"]["completed"] == 6
        assert found["tokens"]["completion"] == found["engine"]["generation_tokens"] == 18
        assert found["ttft"]["count"] == 6
        assert found["admission"]["admitted"] == 6
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert "stopped" in lines[-1]


async def test_connections_go_to_the_worker_with_the_fewest(tmp_path):
    async with serving(tmp_path, *SLOW) as (process, url, _), Streams(url) as streams:
        for _ in range(8):
            await streams.begin()
        shares = [connections(worker) for worker in workers_of(process)]
        assert shares == [4, 4]
        await streams.end()
        found = await until(url, lambda found: found["open"] == 0)
        assert found["requests"]["cancelled"] == 8
        assert found["admission"]["running"] == 0


async def test_one_admission_decides_for_all(tmp_path):
    async with serving(tmp_path, *SLOW, "--max-running", "2", "--max-waiting", "0") as (_, url, _), Streams(url) as streams:
        for _ in range(2):
            await streams.begin()
        for _ in range(4):
            status, body = await fetch(f"{url}/v1/completions", {"prompt": "hi"})
            assert status == 503, body
        found = await metrics(url)
        assert found["admission"]["running"] == 2
        assert found["admission"]["refused"] == {"queue_full": 4}
        assert found["requests"]["refused"] == 4
        await streams.end()
        await until(url, lambda found: found["admission"]["running"] == 0)
        assert (await fetch(f"{url}/v1/completions", {"prompt": "hi"}))[0] == 200
        # A request that can never fit is a client error in each worker.
        for _ in range(2):
            status, body = await fetch(f"{url}/v1/completions", {"prompt": "hi", "n": 3})
            assert (status, json.loads(body)["error"]["param"]) == (400, "n"), body


async def test_a_waiting_request_is_served_in_turn_or_refused_when_its_wait_is_over(tmp_path):
    async with (
        serving(tmp_path, "--engine-arg", "step_seconds=0.05", "--max-running", "1", "--max-wait", "1") as (_, url, _),
        Streams(url) as streams,
    ):
        await streams.begin(max_tokens=10)
        async with anyio.create_task_group() as tasks:
            answers = []

            async def ask(max_tokens):
                answers.append(await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": max_tokens, "ignore_eos": True}))

            tasks.start_soon(ask, 2)
            tasks.start_soon(ask, 2)
        assert [status for status, _ in answers] == [200, 200]
        await streams.begin()
        status, body = await fetch(f"{url}/v1/completions", {"prompt": "hi"})
        assert status == 503, body
        assert (await metrics(url))["admission"]["refused"]


async def test_a_worker_s_death_costs_its_own_connections_and_gives_its_tickets_back(tmp_path):
    async with serving(tmp_path, *SLOW, "--max-running", "4", "--max-waiting", "0") as (process, url, _), Streams(url) as streams:
        for _ in range(4):
            await streams.begin(max_tokens=200)
        assert (await fetch(f"{url}/v1/completions", {"prompt": "hi"}))[0] == 503
        # On a busy machine the four connections may be distributed as three and one.
        held = {worker: streams.held_by(worker) for worker in workers_of(process)}
        killed, lost = max(held.items(), key=lambda item: item[1])
        killed.kill()
        with anyio.fail_after(20):
            while len(workers_of(process)) < 2 or killed in workers_of(process):
                await anyio.sleep(0.02)
        # As many requests as it had can begin again.
        await until(url, lambda found: found["admission"]["running"] <= 4 - lost)
        for _ in range(lost):
            await streams.begin(max_tokens=200)
        whole = [data.count(b"[DONE]") for data in [await read_to_end_of_answer(stream) for stream in streams.open]]
        assert sum(whole) == 4
        found = await until(url, lambda found: found["open"] == 0)
        assert found["admission"]["running"] == 0
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0


def stand_in(*, up=True):
    member = types.SimpleNamespace(up=up, questions=0, silent=False, sent=[])
    member.channel = types.SimpleNamespace(send=member.sent.append)
    return member


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
async def test_a_worker_that_does_not_answer_is_found(anyio_backend):
    answering, stopped, starting = members = [stand_in(), stand_in(), stand_in(up=False)]
    found = []
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        tasks.start_soon(watchdog.watch, members, lambda member, _: found.append((member, anyio.current_time() - began)), 600.0)
        for _ in range(700):
            await anyio.sleep(watchdog.ASK_SECONDS)
            assert not answering.silent
            answering.questions = 0
            if found and stopped in members:
                assert stopped.silent
                # The worker has been replaced.
                members.remove(stopped)
        tasks.cancel_scope.cancel()
    assert found == [(stopped, watchdog.HUNG_SECONDS), (starting, 600.0)]


async def test_a_stopped_worker_gets_no_connections_and_is_replaced(tmp_path):
    """A regression: the supervisor did not notice, and every second client waited without end."""
    short = "import frontends.workers.watchdog as w; w.ASK_SECONDS, w.SILENT_SECONDS, w.HUNG_SECONDS = 0.1, 0.5, 5.0"
    command = f"{short}; from frontends.aiohttp_app import main; main()"
    module = (sys.executable, "-c", f"if __name__ == '__main__': exec({command!r})", "--port", "0")
    async with program(tmp_path, "--workers", "2", module=module) as (process, url, lines):
        first, second = workers_of(process)
        first.suspend()
        with anyio.fail_after(60):
            while first in workers_of(process) or len(workers_of(process)) < 2:
                # A client that got this worker before it was silent waits, and loses its
                # connection.
                with anyio.move_on_after(1), suppress(OSError):
                    await fetch(f"{url}/health/live", timeout=1)
        assert second in workers_of(process)
        for _ in range(4):
            assert (await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 2}))[0] == 200
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert any("has not answered for 5 s" in line for line in lines)


async def test_sigterm_lets_the_first_worker_finish_while_another_still_starts(tmp_path):
    arguments = ("--workers", "2", "--engine-arg", "start_seconds=2", *SLOW)
    async with program(tmp_path, *arguments, until="loading") as (process, url, _), Streams(url) as streams:
        with anyio.fail_after(60):
            while len(workers_of(process)) < 2:
                await anyio.sleep(0.01)
            workers_of(process)[1].suspend()
            # Before the supervisor knows that the first worker is up, it may hand a connection to
            # the stopped one.
            answered = 0
            while answered < 5:
                try:
                    answered = answered + 1 if (await fetch(f"{url}/health/ready", timeout=1))[0] == 200 else 0
                except OSError:
                    answered = 0
            await streams.begin(max_tokens=40)
            process.send_signal(signal.SIGTERM)
            assert b"[DONE]" in await read_to_end_of_answer(streams.open[0])
            assert await process.wait() == 0


async def test_sigterm_lets_every_worker_finish_and_a_second_one_does_not(tmp_path):
    async with serving(tmp_path, *SLOW) as (process, url, _), Streams(url) as streams:
        for _ in range(4):
            await streams.begin(max_tokens=40)
        process.send_signal(signal.SIGTERM)
        for stream in streams.open:
            assert b"[DONE]" in await read_to_end_of_answer(stream)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    async with serving(tmp_path, *SLOW) as (process, url, _), Streams(url) as streams:
        for _ in range(4):
            await streams.begin()
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            while (await fetch(f"{url}/health/ready"))[0] == 200:
                await anyio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for stream in streams.open:
            assert b"the server is stopping" in await read_to_end_of_answer(stream)
        with anyio.fail_after(10):
            assert await process.wait() == 0


async def test_sigterm_while_a_worker_is_being_replaced_lets_the_others_finish(tmp_path):
    """A regression: the signal was treated as one during startup, when no requests are open."""
    async with serving(tmp_path, *SLOW) as (process, url, _), Streams(url) as streams:
        for _ in range(4):
            await streams.begin(max_tokens=40)
        first, second = workers_of(process)
        # Two, or one if a connection that had just closed was still counted.
        others = connections(second)
        first.kill()
        process.send_signal(signal.SIGTERM)
        whole = [b"[DONE]" in await read_to_end_of_answer(stream) for stream in streams.open]
        assert sum(whole) == others > 0
        with anyio.fail_after(10):
            assert await process.wait() == 0


async def test_workers_do_not_outlive_their_supervisor(tmp_path):
    async with serving(tmp_path) as (process, _, _):
        workers = workers_of(process)
        assert len(workers) == 2
        process.kill()
        with anyio.fail_after(10):
            while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
                await anyio.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "'0' is not a valid number of workers"),
        (["--workers", "2", "--engine-arg", "max_num_seq=3"], "unknown engine argument 'max_num_seq'"),
        (["--workers", "2", "--slo-ttft", "-1"], "ttft must be a positive number"),
    ],
)
async def test_a_wrong_argument_is_one_line_with_workers_too(arguments, words):
    result = await anyio.run_process([*MODULE, "--engine", "simulated", "--port", "0", *arguments], check=False)
    assert result.returncode == 2
    assert words in result.stderr.decode().strip().splitlines()[-1]
    assert not re.search("Traceback", result.stderr.decode())


@pytest.mark.parametrize(
    ("cores", "engine", "args", "count"),
    [
        (2, "vllm", {}, 1),
        (4, "vllm", {}, 1),
        (16, "vllm", {}, 4),
        (128, "vllm", {}, 8),
        (16, "simulated", {}, 1),
        (16, "vllm", {"data_parallel_size": 2}, 4),
    ],
)
def test_as_many_are_chosen_as_the_cores_carry(cores, engine, args, count, monkeypatch):
    # Simulate a machine with a GPU and many cores.
    monkeypatch.setattr("llmserve.engines.vllm.args.has_gpu_build", lambda: True)
    monkeypatch.setattr("frontends.aiohttp_app.available_cpus", lambda: cores)
    assert choose_workers(engine, args) == count


# The admission of several workers, in memory

LIMIT, LINE, PATIENCE = 3, 4, 5.0


class Loop:
    """The supervisor's timers, on a clock of the test."""

    def __init__(self):
        self.now = 0.0
        self.timers = []

    def time(self):
        return self.now

    def call_at(self, at, callback, *args):
        timer = Timer(at, callback, args)
        self.timers.append(timer)
        return timer

    def call_later(self, seconds, callback, *args):
        return self.call_at(self.now + seconds, callback, *args)

    def advance(self, seconds):
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.callback(*timer.args)


class Timer:
    def __init__(self, at, callback, args):
        self.at, self.callback, self.args, self.cancelled = at, callback, args, False

    def cancel(self):
        self.cancelled = True


class Process:
    """A worker, its admission server, and messages that arrive when the test delivers them."""

    def __init__(self, controller, loop):
        self.up, self.down = deque(), deque()
        self.admission = AdmissionClient(self.up.append)
        self.admission_server = AdmissionServer(controller, self.down.append, loop)
        self.tickets = []

    def deliver_up(self):
        message = self.up.popleft()
        self.admission_server.receive(message)

    def deliver_down(self, now):
        self.admission.receive(self.down.popleft(), now)


class OneAdmission(RuleBasedStateMachine):
    """In any order of messages, the limit is never exceeded, and in the end no slot is taken."""

    def __init__(self):
        super().__init__()
        self.loop = Loop()
        self.controller = AdmissionController(FixedLimit(limit=LIMIT, max_wait=PATIENCE), max_waiting=LINE)
        self.processes = [Process(self.controller, self.loop) for _ in range(2)]

    @rule(which=st.integers(0, 1), priority=st.integers(0, 1))
    def offer(self, which, priority):
        ticket = Ticket(priority=priority)
        process = self.processes[which]
        assert process.admission.offer(ticket, self.loop.now) is None
        assert ticket.state is TicketState.WAITING
        process.tickets.append(ticket)

    @precondition(lambda self: any(process.tickets for process in self.processes))
    @rule(data=st.data())
    def leave(self, data):
        process = data.draw(st.sampled_from([process for process in self.processes if process.tickets]))
        ticket = data.draw(st.sampled_from(process.tickets))
        process.tickets.remove(ticket)
        assert process.admission.leave(ticket, self.loop.now) == []
        assert ticket.state is TicketState.DONE
        sent = len(process.up)
        process.admission.leave(ticket, self.loop.now)
        assert len(process.up) == sent

    @rule(which=st.integers(0, 1))
    def up(self, which):
        if self.processes[which].up:
            self.processes[which].deliver_up()

    @rule(which=st.integers(0, 1))
    def down(self, which):
        if self.processes[which].down:
            self.processes[which].deliver_down(self.loop.now)

    @rule(seconds=st.floats(0, 2 * PATIENCE))
    def time_passes(self, seconds):
        self.loop.advance(seconds)

    @rule(which=st.integers(0, 1))
    def die(self, which):
        """Drop the messages on their way to or from a worker that has died."""
        self.processes[which].admission_server.close()
        self.processes[which] = Process(self.controller, self.loop)

    @invariant()
    def never_above_the_limit(self):
        running = sum(ticket.state is TicketState.RUNNING for process in self.processes for ticket in process.tickets)
        assert running <= LIMIT
        statistics = self.controller.statistics(self.loop.now)
        assert statistics.running <= LIMIT
        assert statistics.waiting == 0 or statistics.running == LIMIT

    def teardown(self):
        for process in self.processes:
            for _ in range(2):
                while process.up or process.down:
                    if process.up:
                        process.deliver_up()
                    if process.down:
                        process.deliver_down(self.loop.now)
            for ticket in process.tickets:
                process.admission.leave(ticket, self.loop.now)
            while process.up:
                process.deliver_up()
        statistics = self.controller.statistics(self.loop.now)
        assert (statistics.running, statistics.waiting) == (0, 0)
        for process in self.processes:
            assert process.admission.statistics(0).running == process.admission.statistics(0).waiting == 0


TestOneAdmission = OneAdmission.TestCase


class OneAdmissionOfAPool(OneAdmission):
    """The same with three engines that come and go, as the supervisor and each worker learn of it."""

    engines = 3

    def __init__(self):
        super().__init__()
        admission = AdmissionConfig(max_running=LIMIT, max_waiting=LINE, max_wait=PATIENCE)
        self.controller = build_admission(admission, SLO(), LIMIT, engines=self.engines)
        self.processes = [Process(self.controller, self.loop) for _ in range(2)]
        policy: Any = self.controller.policy
        self.members = policy.members
        self.is_up = [True] * self.engines

    @rule(engine=st.integers(0, engines - 1))
    def engine_dies(self, engine):
        self.is_up[engine] = False
        self.controller.suspend(self.loop.now, engine)

    @rule(engine=st.integers(0, engines - 1))
    def engine_is_back(self, engine):
        self.is_up[engine] = True
        wake(self.controller.resume(self.loop.now, engine))

    @rule(which=st.integers(0, 1), data=st.data())
    def move(self, which, data):
        """A worker may lose its engine before or after the supervisor knows of a death."""
        process = self.processes[which]
        running = [ticket for ticket in process.tickets if ticket.state is TicketState.RUNNING]
        if running:
            process.admission.move(data.draw(st.sampled_from(running)), self.loop.now)

    def never_above_the_limit(self):
        pass

    @invariant()
    def each_engine_counts_its_own_tickets(self):
        statistics = self.controller.statistics(self.loop.now)
        members = [member.policy._running for member in self.members]
        assert [self.controller.running_on(engine) for engine in range(self.engines)] == members
        assert sum(members) == statistics.running
        assert statistics.limit == LIMIT * sum(self.is_up)
        free = [running < LIMIT and up for running, up in zip(members, self.is_up, strict=True)]
        assert statistics.waiting == 0 or not any(free)

    def teardown(self):
        for engine in range(self.engines):
            self.engine_is_back(engine)
        super().teardown()
        assert not any(member.policy._running for member in self.members)


TestOneAdmissionOfAPool = OneAdmissionOfAPool.TestCase


def test_a_ticket_whose_patience_is_over_is_not_asked_all_the_time_while_there_is_no_engine():
    loop = Loop()
    controller = AdmissionController(FixedLimit(1, max_wait=PATIENCE), max_waiting=LINE)
    process, tickets = Process(controller, loop), [Ticket(), Ticket()]
    for ticket in tickets:
        process.admission.offer(ticket, loop.now)
        process.deliver_up()
    controller.suspend(loop.now)
    loop.advance(2 * PATIENCE)
    assert min(timer.at for timer in loop.timers) > loop.now
    # Its patience goes on where it stopped.
    wake(controller.resume(loop.now))
    loop.advance(PATIENCE)
    assert tickets[1].state is TicketState.WAITING
    loop.advance(PATIENCE)
    while process.down:
        process.deliver_down(loop.now)
    assert (tickets[0].state, tickets[1].state) == (TicketState.RUNNING, TicketState.DONE)


# Steps that workers see


def told(at, steps, seconds, **more):
    fields = {
        "engine": 0,
        "running": 0,
        "waiting": 0,
        "kv_usage": 0.0,
        "kv_tokens": 100,
        "preemptions": 0,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "generation_tokens": 0,
    }
    return StepCount(told=at, steps=steps, busy_seconds=seconds, **(fields | more))


def test_a_step_that_several_workers_saw_is_one_step():
    together = StepAggregator(one_engine=True)
    for worker in (0, 1):
        together.take(worker, told(0.0, 100, 1.0))
    for worker in (0, 1):
        together.take(worker, told(0.5 + worker / 100, 150, 1.5, running=8 + worker, cached_tokens=30, generation_tokens=200))
    facts = together.together(0.51)
    assert (facts.steps, facts.busy_seconds, facts.cached_tokens, facts.generation_tokens) == (50, 0.5, 60, 400)
    # Each step reports the running requests to one worker: the one with the last report.
    assert (facts.running, facts.kv_tokens) == (9, 100)


def test_a_worker_that_has_nothing_to_do_does_not_halve_the_steps():
    together = StepAggregator(one_engine=True)
    for worker in (0, 1):
        together.take(worker, told(0.0, 0, 0.0))
    together.take(0, told(5.0, 50, 0.5))
    assert together.together(5.0).steps == 50


def test_engines_of_their_own_add_up():
    together = StepAggregator(one_engine=False)
    for worker in (0, 1):
        together.take(worker, told(1.0, 10, 0.1, running=3, waiting=1, kv_usage=0.2 + worker / 10))
    facts = together.together(1.0)
    assert (facts.running, facts.waiting, facts.kv_tokens, facts.kv_usage) == (6, 2, 200, pytest.approx(0.3))


async def test_one_admission_keeps_the_slo_with_the_steps_of_every_worker(tmp_path):
    async with serving(tmp_path, "--slo-ttft", "0.5", "--slo-tpot", "0.1") as (_, url, _):
        for _ in range(4):
            status, _ = await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 20, "ignore_eos": True})
            assert status == 200
        found = await metrics(url)
        assert found["admission"]["policy"] == "lategate"
        assert found["admission"]["counting"] is None
        assert found["engine"]["busy_steps"] > 40
        assert found["goodput"]["met"] == 4
