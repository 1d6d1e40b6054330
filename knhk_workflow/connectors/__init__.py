"""The outside that automated tasks call.

Here: the protocol between the engine and a way to the outside (`connector`), what every such way shares (`allowance`:
where it may connect, `breaker`, `secrets`, `settings`), and the ways that need no library of their own (`http`).

Not here: when a call is made, repeated or given up (the core decides, `runtime/outbox.py` carries out); ways that need
gRPC, which the engine does not know: the daemon brings them. Connectors do not know each other.
"""
