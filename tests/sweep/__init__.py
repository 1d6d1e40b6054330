"""The crash sweep: every write, sync and rename of a workload on the real store, each with every kind of fault.

    shim.c      preloaded into the workload: counts its I/O below one directory, tells of it, and fails at one point
    shim.py     builds it, and says what it is to do
    disk.py     what a volume holds after a loss of power, from what the shim told
    workload.py the process that works, and dies
    judge.py    what must be there afterwards
    sweep.py    one point after the other

`python -m tests.sweep` runs the whole sweep and prints the table.
"""
