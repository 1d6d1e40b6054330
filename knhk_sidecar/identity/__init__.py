"""Who is calling, and who we are: SPIFFE ids, certificates, TLS, the developer's certificate authority.

What a caller may do is decided in `pipeline`; nothing here knows about calls.
"""
