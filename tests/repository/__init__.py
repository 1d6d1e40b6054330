"""Tests of the repository itself: what is declared, what is locked, and what may not stand in any file."""
