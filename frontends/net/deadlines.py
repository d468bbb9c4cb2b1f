"""How long clients of every wire may take."""

import random

# For a request's body, or a frame, to arrive completely.
BODY_SECONDS = 30.0
# For a client that takes nothing of its response, as nginx's send_timeout between two writes.
WRITE_SECONDS = 30.0
# By chance a deadline is up to so much shorter, so that a crowd that came at once does not go at once.
SPREAD = 0.2


def spread(seconds: float) -> float:
    """A deadline for one client of many."""
    return seconds * (1 - SPREAD * random.random())
