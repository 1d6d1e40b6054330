"""The engine under a deterministic simulation: one thread, virtual time, a disk that fails as a seed decides.

    loop.py        an event loop that never sleeps            disk.py     bytes, and a store over them that fails
    nets.py        fixed and random workflows                 clients.py  simulated callers and what they are told
    ledger.py      what is true of the bytes, checked after every commit and against every answer
    simulation.py  one run: episodes, crashes, restarts       planted.py  bugs that the simulation must find

`scripts/simulate --help` runs it; the same seed gives the same run, step by step.
"""
