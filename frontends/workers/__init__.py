"""N processes on one port, each an HTTP server with its own client of one engine core, and one admission for all of them.

The supervisor (`supervisor`) has the engine, the listener and the admission (`admission_server`). It hands accepted connections to the
workers (`worker`), which ask it for a ticket for every request (`admission_client`). No token passes through it.
"""
