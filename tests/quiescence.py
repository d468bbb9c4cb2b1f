"""One check of what must hold after every kind of ending, when nothing is open any more.

An `AuditedEngine` and an `Audit` beside a manager record what the check compares.
"""

from collections import Counter

from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.engines.simulated.scheduler import Scheduler


class Audit:
    """An observer that checks that each request has one end."""

    def __init__(self):
        self.ends = Counter()
        self.outcomes = Counter()
        # The number of tokens that each request's caller got, by request id.
        self.shown = Counter()

    def tokens(self, timeline, count, now):
        pass

    def finished(self, timeline):
        self.ends[timeline.request_id] += 1
        self.outcomes[timeline.outcome] += 1


class AuditedScheduler(Scheduler):
    """Counts the sequences that were dropped, and those that a new start has lost."""

    def __init__(self, *size):
        self.dropped = self.lost = 0
        super().__init__(*size)

    @property
    def inside(self):
        return len(self.running) + len(self.waiting)

    def reset(self, pool):
        self.lost += self.inside
        super().reset(pool)

    def drop(self, request_id):
        before = self.inside
        super().drop(request_id)
        self.dropped += before - self.inside


class AuditedEngine(SimulatedEngine):
    """Counts requests that enter, and how they leave: last token, abort, or the engine's end."""

    scheduler: AuditedScheduler

    def __init__(self, config):
        super().__init__(config)
        self.scheduler = AuditedScheduler(self.scheduler.pool, config.max_num_seqs, config.max_num_batched_tokens)

    @property
    def added(self):
        return self._nonce

    @property
    def dropped(self):
        return self.scheduler.dropped

    @property
    def lost(self):
        return self.scheduler.lost

    @property
    def inside(self):
        return self.scheduler.inside


def check_quiescent(manager, audit=None):
    """Check that nothing runs, waits, is held or is due."""
    statistics = manager.statistics()
    assert statistics.open == 0
    assert statistics.tokenizing == 0
    assert (statistics.running, statistics.waiting) == (0, 0)
    assert (statistics.engine.running, statistics.engine.waiting) == (0, 0)
    assert statistics.engine.kv_usage == 0
    controller = manager.admission
    for engine in manager.engines:
        if isinstance(engine, AuditedEngine):
            # The engine itself removes finished requests too.
            assert engine.added == engine.dropped + engine.lost + engine.inside
            assert engine.inside == 0
    if hasattr(controller, "policy"):
        assert not controller.tenants._accounts
        assert controller._line.cost == 0
        members = getattr(controller.policy, "members", None)
        for policy in [controller.policy] if members is None else [member.policy for member in members]:
            assert getattr(policy, "_running", 0) == 0
            assert not getattr(policy, "_live", None)
            assert getattr(policy, "_pending", 0) == 0
    if audit is not None:
        assert set(audit.ends.values()) <= {1}, f"more than one end: {audit.ends.most_common(1)}"
