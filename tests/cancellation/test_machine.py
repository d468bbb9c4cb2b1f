"""A hypothesis state machine: a manager on a virtual clock, against a model of its state."""

import asyncio
from contextlib import suppress

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from quiescence import Audit, AuditedEngine, check_quiescent

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import (
    AdmissionConfig,
    CancellationToken,
    EngineError,
    EngineManager,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    Outcome,
    RestartConfig,
    Sampling,
    TenantLimits,
    TenantTable,
)
from llmserve.engines.simulated.engine import SimulatedConfig

LIMIT, LINE = 3, 4


class Asked:
    """One request and its caller's task, which reads one delta on each command."""

    def __init__(self, manager, number, tokens, tenant, deadline):
        self.id = f"r{number}"
        self.wanted = tokens
        self.token = CancellationToken()
        self.may_read = asyncio.Event()
        self.got = []
        self.end = None
        self.task = asyncio.create_task(self._run(manager, tenant, deadline))

    async def _run(self, manager, tenant, deadline):
        request = GenerationRequest(
            "hello", request_id=self.id, tenant=tenant, deadline=deadline, sampling=Sampling(max_tokens=self.wanted, ignore_eos=True)
        )
        try:
            async with manager.stream(request, self.token) as stream:
                while not stream.ended:
                    await self.may_read.wait()
                    self.may_read.clear()
                    delta = await anext(stream, None)
                    if delta is not None:
                        self.got += delta.token_ids
                # The tokens before its end, and the end.
                async for delta in stream:
                    self.got += delta.token_ids
            self.end = "complete"
            assert len(self.got) == self.wanted
        except LLMServeError as error:
            self.end = type(error).__name__
        except asyncio.CancelledError:
            self.end = "task cancelled"
            raise
        finally:
            assert len(self.got) <= self.wanted


class Served(RuleBasedStateMachine):
    asked = Bundle("asked")

    @initialize()
    def start(self):
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.engine, self.audit = AuditedEngine(SimulatedConfig(abort_seconds=0.003, start_seconds=0.05, max_model_len=256)), Audit()
        config = ManagerConfig(
            admission=AdmissionConfig(max_running=LIMIT, max_waiting=LINE, max_wait=2.0),
            restart=RestartConfig(most=3, window=5.0, first_pause=0.02),
            max_seconds=30.0,
            drain_timeout=1.0,
        )
        self.manager = EngineManager(self.engine, config, [self.audit])
        self.requests, self.stopping, self.deaths = [], False, 0
        self.leave = asyncio.Event()
        self.host = self.loop.create_task(self._host())
        self._go(0.1)

    async def _host(self):
        async with self.manager:
            await self.leave.wait()

    def _go(self, seconds):
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def _do(self, action):
        async def act():
            action()

        self.loop.run_until_complete(act())

    @rule(target=asked, tokens=st.integers(1, 8), tenant=st.sampled_from("ab"), deadline=st.sampled_from([None, None, 0.02, 0.5]))
    def ask(self, tokens, tenant, deadline):
        self._do(lambda: self.requests.append(Asked(self.manager, len(self.requests), tokens, tenant, deadline)))
        return self.requests[-1]

    @rule(request=asked)
    def read(self, request):
        self._do(request.may_read.set)

    @rule(request=consumes(asked))
    def cancel_its_token(self, request):
        self._do(lambda: request.token.cancel("enough"))

    @rule(request=consumes(asked))
    def cancel_its_task(self, request):
        self._do(request.task.cancel)

    @rule(request=asked)
    def the_engine_fails_it(self, request):
        def fail():
            for sequence in [*self.engine.scheduler.running, *self.engine.scheduler.waiting]:
                if sequence.id == request.id:
                    self.engine.scheduler.drop(sequence.id)
                    sequence.sink.fail(EngineError("bad luck"))

        self._do(fail)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.1, 1.0]))
    def time_passes(self, seconds):
        self._go(seconds)

    @precondition(lambda self: self.manager.state == "ready")
    @rule()
    def the_engine_dies(self):
        self.deaths += 1
        self._do(self.engine.kill)
        self._go(0.001)

    @rule(weight=st.sampled_from([0.5, 1.0, 4.0]), most=st.sampled_from([1, 2, None]))
    def tenants_are_given_others_limits(self, weight, most):
        self._do(lambda: self.manager.set_tenants(TenantTable({"a": TenantLimits(weight=weight, concurrency=most)})))

    @precondition(lambda self: not self.stopping and len(self.requests) > 5)
    @rule()
    def the_server_is_told_to_stop(self):
        self.stopping = True
        self._do(self.leave.set)

    @invariant()
    def no_more_runs_than_may(self):
        if self.manager.state == "new":
            return
        statistics = self.manager.statistics()
        assert statistics.running <= LIMIT
        assert statistics.waiting <= LINE
        assert statistics.open <= len(self.requests)
        assert set(self.audit.ends.values()) <= {1}

    @invariant()
    def every_end_is_its_caller_s(self):
        """A request whose task is over is no longer open; only its cleanup may still run."""
        over = sum(request.task.done() for request in self.requests)
        assert sum(self.audit.ends.values()) >= over - sum(request.end == "task cancelled" for request in self.requests)

    def teardown(self):
        if not hasattr(self, "loop"):
            return

        async def end():
            for request in self.requests:
                request.may_read.set()
                request.task.cancel()
            await asyncio.gather(*(request.task for request in self.requests), return_exceptions=True)
            if self.manager.state == "ready":
                await asyncio.sleep(1)
                check_quiescent(self.manager, self.audit)
            self.leave.set()
            with suppress(LLMServeError):
                await self.host
            statistics = self.manager.statistics()
            assert (statistics.open, statistics.running, statistics.waiting, statistics.tokenizing) == (0, 0, 0, 0)
            assert set(self.audit.ends.values()) <= {1}
            assert set(self.audit.outcomes) <= set(Outcome)
            # Nothing keeps running in the loop.
            assert asyncio.all_tasks() == {asyncio.current_task()}
            for request in self.requests:
                if request.end is not None and not request.task.cancelled():
                    request.task.result()

        try:
            self.loop.run_until_complete(end())
        finally:
            self.loop.close()
            asyncio.set_event_loop(None)


Served.TestCase.settings = settings(stateful_step_count=50)
TestServed = Served.TestCase
