"""The engine's own operations, beside what stories tell."""
