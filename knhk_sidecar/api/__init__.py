"""The sidecar's surface: what callers may ask, over gRPC and REST.

Here belong the contract's generated code (`pb`), the one translation between it and the engine (`wire`), the services
and the two transports. What the daemon decides about a call (identity, policy, limits) belongs to `pipeline`.
"""
