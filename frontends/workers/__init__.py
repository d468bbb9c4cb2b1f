"""N processes on one port, each an HTTP server with its own client of one engine core, and one admission for all of them.

The owner (`owner`) has the engine, the listener and the admission (`desk`); it hands accepted connections to the workers (`worker`), which
ask it for a ticket for every request (`remote`). No token passes through it.
"""
