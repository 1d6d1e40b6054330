"""The audit: what is in it, and that nobody can change it unseen."""
