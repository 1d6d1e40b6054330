"""Connectors that the daemon brings along, and those that its operator has configured.

Here: the kinds that need a library which the engine does not know (gRPC), and the reading of the operator's file.
Not here: the protocol, HTTP, and everything about when a call is made: that is the engine's.
"""
