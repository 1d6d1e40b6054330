"""What happens to every call, over gRPC and REST alike, before and after the service does its work.

    observe( translate( identify( authorize( admit( handler ) ) ) ) )

One order, written down in `pipeline.py`; a service can be reached through it only. The stages know identities, limits
and errors, but neither a transport nor a store; what a call means is the services' business.
"""
