"""The worker that applications use."""
