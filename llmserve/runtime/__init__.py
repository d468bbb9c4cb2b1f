"""Event loops, tasks that outlive their caller, starts that can be given up, the process's memory and CPUs."""
