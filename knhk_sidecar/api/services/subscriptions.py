"""SubscriptionService: webhooks. Every call of it answers UNIMPLEMENTED in this version."""

from __future__ import annotations


class SubscriptionService:
    """Has no calls yet; the list of operations fills the gaps."""
