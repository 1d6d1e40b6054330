"""The command line as a user has it: real processes, a real daemon."""
