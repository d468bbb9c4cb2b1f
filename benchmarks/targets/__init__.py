"""What is measured: a manager in this process, a server over HTTP, and whatever else learns to `send`."""

from benchmarks.targets.base import Target, TargetError, with_patience

__all__ = ("Target", "TargetError", "with_patience")
