"""The patterns, proved by stories: small nets, what the outside does to them, and what must follow.

`golden.py` plays `stories/*.txt` and compares them word for word; `pytest tests/patterns --rewrite` writes them anew.
"""
