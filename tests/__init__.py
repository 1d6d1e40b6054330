"""The tests: of the engine and the sidecar by room, end to end with real processes, and of the repository itself.

They use the real thing (a real store in a temporary directory, a real server on a loopback port, a virtual clock) and
no mock library. What several of them need is imported as `tests.…`.
"""
