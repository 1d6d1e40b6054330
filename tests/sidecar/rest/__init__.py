"""REST against a real daemon over a real port."""
