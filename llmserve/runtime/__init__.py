"""Event loops, long-lived tasks, cancellable starts, and the process's memory and CPUs."""
