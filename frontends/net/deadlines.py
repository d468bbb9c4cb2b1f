"""Time limits for clients, for all wire protocols."""

import random

# Maximum seconds for a request's body, or a frame, to arrive completely.
BODY_SECONDS = 30.0
# Maximum seconds that a client may take no bytes of its response, like nginx's send_timeout.
WRITE_SECONDS = 30.0
# Deadlines are shortened at random by up to this share, so that clients that connected together do
# not all time out together.
SPREAD = 0.2


def spread(seconds: float) -> float:
    """Return a time limit that is shortened at random by up to `SPREAD`."""
    return seconds * (1 - SPREAD * random.random())
