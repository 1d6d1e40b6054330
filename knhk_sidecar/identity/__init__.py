"""Who is calling, who we are, and what somebody may do: SPIFFE ids, certificates, TLS, tokens, the policy, the
developer's certificate authority and agent, the key that signs.

Nothing here knows about calls: what one needs, and that it is refused, is the pipeline's business.
"""
