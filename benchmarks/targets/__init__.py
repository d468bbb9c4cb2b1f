"""Targets of a load: a manager in this process, a server over HTTP, or any `Target`."""

from benchmarks.targets.base import Target, TargetError, with_patience

__all__ = ("Target", "TargetError", "with_patience")
