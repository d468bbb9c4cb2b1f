"""Several HTTP server processes that share one port, one engine core and one admission.

The supervisor (`supervisor`) has the engine, the listener and admission (`admission_server`). It
hands accepted connections to the workers (`worker`). Each worker has its own client of the engine
core, and requests a ticket for every request (`admission_client`). No token passes through the
supervisor.
"""
