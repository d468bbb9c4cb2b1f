"""Options of servers: each is defined once, as a field of an attrs class in the component that uses it."""
